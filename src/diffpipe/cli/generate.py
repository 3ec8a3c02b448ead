"""diffpipe generate NAME: one sub-command a built pipeline, with that pipeline's own call arguments as flags."""

from __future__ import annotations

import inspect
import os
from collections.abc import Collection, Mapping
from contextlib import suppress
from difflib import get_close_matches
from typing import Any, Literal

from ..errors import UsageError
from ..specs import FORMATS, FRAME_RATES, MEDIA_KINDS, NOUNS, Flag, OutputKind
from ..store import SHORT, Entry, Store
from . import output, tree
from .flags import arguments, option, option_name, parameter, parse_json, reporting, with_parameters

CALL, RUN = "Call arguments", "Run options"


def make() -> Any:
    return tree.group("generate", "Make pictures, video or sound with a built pipeline.", _rows, _make)


def _rows() -> dict[str, str]:
    store = Store()
    return {
        name: f"{entry.summary.get('pipeline', '')} from {entry.summary.get('model', '')}"
        for name, key in store.names().items()
        if (entry := store.get(key))
    }


def _make(reference: str) -> Any:
    store = Store()
    entry = store.find(reference)
    manifest = entry.manifest()
    flags = [Flag.from_json(flag) for flag in manifest["flags"]]
    own = options(manifest["kind"], {flag.name for flag in flags})
    taken = {option.name for option in own}
    shown = [flag for flag in flags if flag.name not in taken]

    def function(**values: Any) -> None:
        _generate(reference, entry, manifest, shown, values)

    text = f"{manifest['pipeline']} ({manifest['provider']}, {manifest['type']}), {entry.key[:SHORT]}."
    command = with_parameters(function, [*(parameter(flag, CALL) for flag in shown), *own])
    return tree.command(reference, command, text)


def options(kind: OutputKind, arguments: Collection[str] = ()) -> list[inspect.Parameter]:
    """The run options of a pipeline that makes this kind of output and takes these call arguments."""
    formats, noun = FORMATS[kind], NOUNS[kind]
    return [
        option(
            "output", str | None, None,
            f"Where the {noun}s go: a path with fields {{name}} {{key}} {{id}} {{index}} {{seed}} {{prompt}} {{ext}}, "
            "or a folder ending in /. Default: {name}-{seed}.{ext}", "--output", "-o", panel=RUN, metavar="TEMPLATE",
        ),
        option(
            "format", Literal[formats] | None, None,
            f"File format. Default: by the output's ending, else {formats[0]}."
            + (" frames: a folder of pictures." if kind == "video" else ""), panel=RUN,
        ),
        *([FPS] if kind == "video" and not set(FRAME_RATES) & set(arguments) else []),
        option(
            "seed", int | None, None,
            f"Seed of the first {noun}; the next ones count up. Default: a fresh random one.", panel=RUN,
            metavar="INTEGER",
        ),
        option(
            "count", int, 1, f"How many {noun}s to make, each with its own seed.", panel=RUN, metavar="INTEGER", min=1,
        ),
        option(
            "set", list[str] | None, None,
            "Pass a call argument that has no flag. May be repeated.", panel=RUN, metavar="KEY=JSON",
        ),
        option(
            "fit", bool, False,
            "Take the nearest size or number of frames that the pipeline can make, and crop pictures to it.", "--fit",
            panel=RUN,
        ),
        option("overwrite", bool, False, "Replace files that exist.", "--overwrite", panel=RUN),
        *reporting(RUN, f"Print a JSON object a {noun} instead of its path."),
    ]  # fmt: skip


FPS = option(
    "fps", float | None, None,
    "Frames a second of the video file. Default: what the pipeline is told, or made for.", panel=RUN, metavar="NUMBER",
    min=0.1, max=240,
)  # fmt: skip


def _generate(
    reference: str, entry: Entry, manifest: Mapping[str, Any], flags: list[Flag], values: dict[str, Any]
) -> None:
    """Check everything, then load, then make one picture after another."""
    output.set_up(quiet=values["quiet"], verbose=values["verbose"], log_file=values["log_file"])
    from ..batch import Outputs, checked, requests
    from ..verify import locate

    by_name = {flag.name: flag for flag in flags}
    called = arguments(flags, values) | _set(values["set"] or [], by_name, manifest)
    called = checked(by_name, called, fit=values["fit"])
    _check_files(by_name, called)
    planned = requests(
        called,
        values["seed"],
        values["count"],
        Outputs(values["output"], values["format"], values["overwrite"], manifest["kind"], values.get("fps")),
        reference,
        entry.key,
    )
    _warn_of_versions(manifest, reference)
    _warn_of_words(manifest, called)
    locations = locate(entry, dict(manifest))

    from ..engine.run import read_media
    from ..runners import local

    media = read_media(by_name, called, fit=values["fit"])
    with suppress(OSError):  # a cache that may only be read serves as well
        entry.touch()
    if values["seed"] is None:
        output.say(f"seed {planned[0].seed}")
    with output.steps(reference, len(planned)) as show:
        finished = local.run(
            manifest,
            locations,
            planned,
            media,
            lambda r, done, total: show(f"{r.index + 1}/{len(planned)}", done, total),
        )
        for index, made in enumerate((made for artifacts in finished for made in artifacts), 1):
            _report(made, index, values["json"])


def _report(made: Any, index: int, as_json: bool) -> None:
    """A picture's line on stdout; `index` counts the run's pictures from 1, as {index} does."""
    if as_json:
        shown = {"path": made.path, "seed": made.seed, "index": index, "seconds": round(made.seconds, 3)}
        output.result_json(shown | dict(made.details))
    else:
        output.result(made.path)


def _set(texts: list[str], flags: Mapping[str, Flag], manifest: Mapping[str, Any]) -> dict[str, Any]:
    """--set KEY=JSON: any argument the call takes and diffpipe does not provide itself.

    Raises UsageError for a key the pipeline does not take.
    """
    chosen: dict[str, Any] = {}
    known = set(manifest["arguments"])
    for text in texts:
        key, mark, value = text.partition("=")
        name = key.strip().replace("-", "_")
        if not mark or name not in known:
            near = get_close_matches(name, sorted(known), n=1)
            raise UsageError(
                f"--set {text}: the pipeline takes no {name!r}" if mark else f"--set {text} is not KEY=JSON",
                f"did you mean {near[0]}?" if near else f"it takes: {', '.join(sorted(known))}",
            )
        chosen[name] = _text_or_json(value, flags.get(name), text)
    return chosen


def _text_or_json(value: str, flag: Flag | None, text: str) -> Any:
    """JSON; a bare word is the text itself where the argument is text or a file."""
    if flag and (flag.kind in MEDIA_KINDS or flag.kind in ("text", "choice")) and not value.startswith(('"', "[")):
        return value
    parsed = parse_json(value, f"--set {text.partition('=')[0]}")
    if flag and flag.kind != "json" and isinstance(parsed, list) and not flag.many:
        raise UsageError(
            f"--set {text}: {option_name(flag)} takes one value, not a list", "use --count for more pictures"
        )
    if flag and flag.kind in ("integer", "number", "boolean"):
        wanted = {"integer": int, "number": (int, float), "boolean": bool}[flag.kind]
        for item in parsed if isinstance(parsed, list) and flag.many else [parsed]:
            if not isinstance(item, wanted) or (isinstance(item, bool) and flag.kind != "boolean"):  # type: ignore[arg-type]
                raise UsageError(f"--set {text}: {item!r} is no {flag.kind}", f"see {option_name(flag)} in --help")
    return parsed


def _check_files(flags: Mapping[str, Flag], called: Mapping[str, Any]) -> None:
    """Raises UsageError for a media argument that is no file."""
    for name, flag in flags.items():
        if flag.kind not in MEDIA_KINDS or name not in called:
            continue
        for path in called[name] if isinstance(called[name], list) else [called[name]]:
            if not os.path.exists(path):
                raise UsageError(f"{option_name(flag)}: there is no file {path}", "check the path")
            if os.path.isdir(path) and flag.kind != "video":
                raise UsageError(f"{option_name(flag)}: {path} is a folder", "name a file in it")
        if "ip_adapter" in name:
            raise UsageError(
                f"{option_name(flag)} needs an IP-Adapter, which no pipeline can be built with yet", "leave it out"
            )


def _warn_of_versions(manifest: Mapping[str, Any], reference: str) -> None:
    """Say when diffusers is another version than the flags were read from."""
    from importlib.metadata import version

    built, now = manifest["versions"].get("diffusers"), version("diffusers")
    if built != now:
        output.warn(
            f"{reference} was built with diffusers {built}, and {now} is installed; build it again with --force"
        )


def _warn_of_words(manifest: Mapping[str, Any], called: Mapping[str, Any]) -> None:
    """Say which words of a prompt a model with a small vocabulary does not know."""
    from ..plugins import providers
    from ..vocabulary import read, unknown_words

    provider = providers().get(manifest["provider"])
    if provider is None or not provider.vocabulary:
        return
    for word, near in unknown_words(str(called.get("prompt") or ""), read(provider.vocabulary)).items():
        hint = f"did you mean {' or '.join(near)}? " if near else ""
        output.warn(f"the model does not know {word!r}; {hint}diffpipe providers show {provider.name} lists its words")
