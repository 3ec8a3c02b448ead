"""diffpipe reproduce FILE: make an output again with what it was made with, and compare."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..batch.output_paths import Outputs, paths, whole_template
from ..building.reproduce import Given, call_of, entry_of, find_media
from ..cache.entry import SHORT, Entry
from ..cache.store import Store
from ..core.counter import CompactCounter
from ..core.errors import DiffpipeError, Exit, UsageError
from ..core.flag import FORMATS, Arguments, OutputKind
from ..core.manifest import Manifest
from ..core.request import Artifact, Request
from ..results.comparison import changes, verdict
from ..results.document import Document, InputFile, parsed
from ..results.metadata import About
from ..storage import urls
from ..storage.disk import temporary_folder
from . import output, tree
from .build import component_of
from .flags import option, reporting, with_parameters
from .inspect_file import File, texts_of

TEXT = "Make a file again with what it was made with, and compare."
EPILOG = (
    "--verify: exit code 0 where both files are the same byte for byte, or once decoded the same to eye and ear (PSNR "
    "from 40 dB for pictures and frames, from 60 dB for sound), else 1."
)
WHERE, RUN = "Where things are", "Run options"

FILE = inspect.Parameter("file", inspect.Parameter.KEYWORD_ONLY, annotation=File)
OPTIONS = [
    option(
        "model", str | None, None, "The local model that it was made with.", panel=WHERE, metavar="SOURCE",
    ),
    option(
        "config", str | None, None, "The local settings of its single-file checkpoint.", panel=WHERE, metavar="SOURCE",
    ),
    option(
        "component", list[str] | None, None, "A local component. May be repeated.", panel=WHERE, metavar="NAME=SOURCE",
    ),
    option(
        "lora", list[str] | None, None, "A local LoRA. May be repeated, in the order it says.", panel=WHERE,
        metavar="FILE",
    ),
    option(
        "set", list[str] | None, None,
        "An input file. Default: the one of its name beside FILE or in the current folder. May be repeated.",
        panel=WHERE, metavar="ARGUMENT=FILE",
    ),
    option(
        "force", bool, False, "Go on where an input file, or the pipeline built again, is not what it was.", "--force",
        panel=WHERE,
    ),
    option(
        "output", str | None, None,
        "Where it goes, as generate takes it. Default: NAME-reproduced.EXT in the current folder.", "--output", "-o",
        panel=RUN, metavar="TEMPLATE",
    ),
    option("overwrite", bool, False, "Replace the file that is there.", "--overwrite", panel=RUN),
    option("verify", bool, False, "Compare it with FILE, and tell what differs.", "--verify", panel=RUN),
    option(
        "allow_pickle", bool, False, "Load pickled weights, which can run code.", "--allow-pickle", panel=RUN,
    ),
    option(
        "trust_remote_code", bool, False, "Run pipeline code that comes with the model.", "--trust-remote-code",
        panel=RUN,
    ),
    option("offline", bool, False, "Use only what is on this machine.", "--offline", panel=RUN),
    *reporting(RUN, "Print a JSON object instead of the path."),
]  # fmt: skip


def make() -> Any:
    def function(**values: Any) -> Exit:
        return _reproduce(values.pop("file"), values)

    return tree.command("reproduce", with_parameters(function, [FILE, *OPTIONS]), TEXT, EPILOG)


def _reproduce(file: Path, values: Mapping[str, Any]) -> Exit:
    """Find or build the pipeline, make the file again, compare."""
    output.set_up(quiet=values["quiet"], verbose=values["verbose"], log_file=values["log_file"])
    document = _document(file)
    with output.reading("reading") as report, output.warnings_shown():
        entry = entry_of(document.recipe, _given(values), Store(), output.say, report)
    manifest = entry.manifest()
    target = _target(document, manifest, file, values["output"], values["overwrite"])
    if values["verify"] and os.path.abspath(target) == os.path.abspath(file):
        raise UsageError(f"--verify compares {file.name} with what would replace it", "choose another -o")
    arguments = _arguments(document, manifest, file, values["set"] or [], values["force"])
    made = _made(entry, manifest, document, arguments, target, values["overwrite"])
    shown = {"path": made.path, "seed": made.seed, "key": entry.key, "seconds": round(made.seconds, 3)}
    if not values["verify"]:
        _tell(shown, [made.path], values["json"])
        return Exit.OK
    same, compared = _compared(file, Path(made.path), document, manifest.kind)
    lines = [made.path, f"{file}: {compared['verdict']}", *(f"  {line}" for line in compared["changes"])]
    _tell({**shown, "same": same, **compared}, lines, values["json"])
    return Exit.OK if same else Exit.FAILED


def _document(file: Path) -> Document:
    """What the file says of itself. Raises DiffpipeError for one that diffpipe did not make."""
    found = texts_of(file)
    if "diffpipe" not in found:
        raise DiffpipeError(f"{file.name} was made by another tool", "diffpipe inspect shows what it says")
    return parsed(found["diffpipe"])


def _given(values: Mapping[str, Any]) -> Given:
    components = dict(map(component_of, values["component"] or []))
    same = ("model", "config", "allow_pickle", "trust_remote_code", "force", "offline", "quiet")
    return Given(components=components, loras=values["lora"] or [], **{name: values[name] for name in same})


def _tell(shown: Mapping[str, Any], lines: Iterable[str], as_json: bool) -> None:
    if as_json:
        output.result_json(shown)
        return
    for line in lines:
        output.result(line)


def _target(document: Document, manifest: Manifest, file: Path, template: str | None, overwrite: bool) -> str:
    """Where the file goes: as generate would put it. Raises UsageError where it cannot."""
    if template and urls.is_url(template):
        raise UsageError("--output: a file is reproduced here, not at a URL", "name a place on a disk")
    kind: OutputKind = manifest.kind
    known, recorded = FORMATS[kind], document.result.format
    own = template is not None and Path(template).suffix[1:].lower() in known
    stem = file.stem.replace("{", "{{").replace("}", "}}")
    form = recorded if recorded in known and not own else None
    outputs = Outputs(template, form, overwrite, kind=kind, default=f"{stem}-reproduced.{{ext}}")
    values: dict[str, int | str] = {
        "name": document.pipeline.name,
        "key": document.pipeline.key[:SHORT],
        "id": file.stem,
        "seed": document.seed,
        "prompt": str(document.arguments.get("prompt") or ""),
    }
    return paths(whole_template(outputs), values, [document.result.index + 1], outputs, CompactCounter(), ())[0]


def _arguments(document: Document, manifest: Manifest, file: Path, texts: list[str], force: bool) -> Arguments:
    """The call arguments, input files found."""
    given: dict[str, list[str]] = {}
    for text in texts:
        name, mark, path = text.partition("=")
        name = name.strip().replace("-", "_")
        if not mark or name not in document.media:
            inputs = ", ".join(document.media) or "none"
            raise UsageError(f"--set {text} names no input file of {file.name}", f"its inputs: {inputs}")
        given.setdefault(name, []).append(path)

    def find(name: str, recorded: InputFile, place: int) -> str:
        named = given.get(name, [])
        own = named[place] if place < len(named) else None
        return find_media(name, recorded, own, (file.parent, Path()), force=force)

    return call_of(document, manifest, find)


def _made(
    entry: Entry,
    manifest: Manifest,
    document: Document,
    arguments: Arguments,
    target: str,
    overwrite: bool,
) -> Artifact:
    """The file, made again: of the results of the call the one that it was. Raises what the call raises."""
    from ..cache.verify import locate
    from ..engine import media
    from ..runners.inputs import reader
    from ..runners.local import run_here
    from ..runners.settings import RunSettings

    flags = manifest.flags_by_name
    name, fit = document.pipeline.name, document.fit
    about = About(name, fit, document.batch_size)
    index, wanted = document.result.index, Path(target)
    wanted.parent.mkdir(parents=True, exist_ok=True)
    with temporary_folder(wanted) as folder:
        path = str(Path(folder, f"result{wanted.suffix}"))
        request = Request(0, document.seed, arguments, (path,), fps=document.fps)
        with output.steps(name, 1) as show:
            read = reader(flags, fit, output.warn)
            on_step = lambda _, done, steps: show("1/1", done, steps)  # noqa: E731
            settings = RunSettings(read, on_step, about=about, on_warning=output.warn)
            try:
                (outcome,) = run_here(manifest, locate(entry, manifest), [request], settings)
            except DiffpipeError as error:
                error.message = error.message.replace(path, target)
                raise
        for text in outcome.warnings:
            if not output.warned(text) and not output.warned(f"seed {request.seed}: {text}"):  # told as it came up
                output.warn(text)
        if outcome.error:
            raise outcome.error
        if not 0 <= index < len(outcome.artifacts):
            problem = f"the call made {len(outcome.artifacts)} results, and this was number {index + 1}"
            raise DiffpipeError(problem, "its settings are of another version of the pipeline")
        made = outcome.artifacts[index]
        placed = media.publish(Path(made.path), wanted, overwrite=overwrite)
        return Artifact(str(placed), made.seed, index, made.kind, made.seconds, made.details)


def _compared(file: Path, made: Path, document: Document, kind: OutputKind) -> tuple[bool, dict[str, Any]]:
    """Whether both are the same, and for --json: the verdict in words, decibels, and what may explain a difference."""
    from ..engine.running import compare

    identical = compare.identical(file, made)
    measured = {} if identical else compare.measured(file, made, kind)
    same, words = verdict(identical, measured)
    now = parsed(texts_of(made)["diffpipe"])
    psnr = {name: value if value != float("inf") else None for name, value in measured.items()}
    return same, {
        "verdict": words,
        "identical": identical,
        "psnr": psnr,
        "changes": [] if identical else changes(document, now),
    }
