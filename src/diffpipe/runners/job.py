"""What a run in another process is told, and what it answers: plain data, which goes as JSON."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ..core.errors import DiffpipeError, Exit
from ..core.request import Artifact, Outcome, Request
from ..results.metadata import About

CHUNK = 20  # items that are made side by side where components are offloaded


@dataclass(frozen=True)
class Job:
    """How requests are made. `about`: what their files say of the run, None for nothing. `several`: whether items may
    be made side by side, and asked for ahead. `previews`: (every, decode) of engine.preview.Preview, None for none.
    """

    batch_size: int = 1
    several: bool = False
    fit: bool = False
    about: About | None = None
    step_down: bool = True
    previews: tuple[int | None, bool] | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        about, previews = data["about"], data["previews"]
        return cls(**{**data, "about": About(**about) if about else None, "previews": tuple(previews or ()) or None})


@dataclass(frozen=True)
class Ears:
    """Who hears of a run while it goes: each step of a request (steps done, steps in all), lines for the user, and
    previews (PIL pictures)."""

    on_step: Callable[[Request, int, int], None]
    tell: Callable[[str], None]
    show: Callable[[Any], None] | None = None


def request_json(request: Request) -> dict[str, Any]:
    return asdict(request)


def request_of(data: Mapping[str, Any]) -> Request:
    return Request(**{**data, "paths": tuple(data["paths"])})


def outcome_json(outcome: Outcome) -> dict[str, Any]:
    """An outcome without its request, which the one who asked knows."""
    return {
        "artifacts": [asdict(artifact) for artifact in outcome.artifacts],
        "warnings": list(outcome.warnings),
        "error": error_json(outcome.error) if outcome.error else None,
    }


def outcome_of(data: Mapping[str, Any], request: Request) -> Outcome:
    artifacts = tuple(Artifact(**artifact) for artifact in data["artifacts"])
    error = error_of(data["error"]) if data["error"] else None
    return Outcome(request, artifacts, tuple(data["warnings"]), error)


def error_json(error: DiffpipeError) -> dict[str, Any]:
    trace = "".join(traceback.format_exception(error))
    return {"message": error.message, "hint": error.hint, "code": int(error.exit_code), "trace": trace}


def error_of(data: Mapping[str, Any]) -> DiffpipeError:
    """The error, with where it came from in the other process as a note, which --traceback shows."""
    error = DiffpipeError(data["message"], data["hint"], Exit(data["code"]))
    error.add_note(data["trace"])
    return error
