"""Requests, and what became of them, as the JSON that goes between this process and one that makes them."""

from __future__ import annotations

import traceback
from dataclasses import asdict, dataclass

from ..core.canonical import JsonObject
from ..core.errors import DiffpipeError, Exit
from ..core.flag import MAX_SEED, OutputKind
from ..core.parsing import Fields, Misfit
from ..core.request import Artifact, Outcome, Request

LONGEST_TEXT = 16 << 20  # characters of an error's text: all that a message can hold


def request_json(request: Request) -> JsonObject:
    return asdict(request)


def request_of(fields: Fields) -> Request:
    """Raises Misfit."""
    return Request(
        index=fields.integer("index"),
        seed=fields.integer("seed", most=MAX_SEED),
        arguments=fields.object("arguments").value,
        paths=fields.texts("paths"),
        overwrite=fields.truth("overwrite", False),
        fps=fields.maybe_number("fps"),
        id=fields.text("id", ""),
        item=fields.text("item", ""),
    )


@dataclass(frozen=True)
class Answer:
    """What became of a request, without the request itself, which the one who asked knows."""

    artifacts: tuple[Artifact, ...] = ()
    warnings: tuple[str, ...] = ()
    error: DiffpipeError | None = None

    @classmethod
    def of(cls, outcome: Outcome) -> Answer:
        return cls(outcome.artifacts, outcome.warnings, outcome.error)

    def outcome(self, request: Request) -> Outcome:
        return Outcome(request, self.artifacts, self.warnings, self.error)

    def to_json(self) -> JsonObject:
        return {
            "artifacts": [asdict(artifact) for artifact in self.artifacts],
            "warnings": list(self.warnings),
            "error": error_json(self.error) if self.error else None,
        }

    @classmethod
    def from_json(cls, fields: Fields) -> Answer:
        """Raises Misfit."""
        return cls(
            artifacts=tuple(map(artifact_of, fields.objects("artifacts"))),
            warnings=fields.texts("warnings"),
            error=error_of(fields.object("error")) if "error" in fields else None,
        )


def artifact_of(fields: Fields) -> Artifact:
    """Raises Misfit."""
    kind: OutputKind = fields.choice("kind", OutputKind)
    return Artifact(
        path=fields.text("path"),
        seed=fields.integer("seed", most=MAX_SEED),
        index=fields.integer("index"),
        kind=kind,
        seconds=fields.number("seconds"),
        details=fields.object("details").value,
        stored=fields.object("stored").value,
    )


def error_json(error: DiffpipeError) -> JsonObject:
    trace = "".join(traceback.format_exception(error))
    return {"message": error.message, "hint": error.hint, "code": int(error.exit_code), "trace": trace}


def error_of(fields: Fields) -> DiffpipeError:
    """The error, with where it came from in the other process as a note, which --traceback shows. Raises Misfit."""
    code = fields.integer("code")
    if code not in set(Exit):
        raise Misfit(f"{code} is no exit code")
    message, hint = (fields.text(name, most=LONGEST_TEXT) for name in ("message", "hint"))
    error = DiffpipeError(message, hint, Exit(code))
    error.add_note(fields.text("trace", most=LONGEST_TEXT))
    return error
