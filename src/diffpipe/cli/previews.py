"""Looking at what a run makes: previews while it does, a contact sheet and a gallery of what came out."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..batch.items import Batch
from ..batch.journal_lines import Record
from ..core.errors import DiffpipeError, UsageError
from ..core.flag import FORMATS, MEDIA_KINDS, Arguments, OutputKind
from ..core.manifest import Manifest
from ..core.request import Artifact, Outcome, Request
from ..results import gallery
from ..results.document import Document, parsed
from ..storage import fetching, stores, urls
from ..storage.disk import check_replaceable, refused
from . import output, textual_image_seam
from .flags import option

PANEL = "Looking"
MARK = "diffpipe preview"  # what a preview file says of itself, so that no other file is taken for one
WIDTH = 40  # columns of a preview in a terminal


def options(kind: OutputKind) -> list[inspect.Parameter]:
    """The options of looking; a sound has no preview."""
    return [*(PREVIEWS if kind != "audio" else ()), *SHEETS]


SHEETS = (
    option(
        "contact_sheet", Path | None, None,
        "Write all results, small and with captions, into one picture; 100 a page, then FILE-2, FILE-3.", panel=PANEL,
        metavar="FILE",
    ),
    option(
        "gallery", Path | None, None,
        "Add the results to a page, DIR/index.html, that shows, filters and sorts them with all settings. Results that "
        "lie elsewhere get a link or copy in DIR/files.", panel=PANEL, metavar="DIR",
    ),
)  # fmt: skip
PREVIEWS = (
    option(
        "preview", str, "none", "Show what is being made: terminal, or a picture file that is replaced again and "
        "again. Colours are estimated; what is made does not change.", panel=PANEL, metavar="none|terminal|FILE",
    ),
    option(
        "preview_every", int | None, None, "Steps from one preview to the next. Default: five previews.", panel=PANEL,
        metavar="INTEGER", min=1,
    ),
    option(
        "preview_decode", bool, False, "Preview with the full decoder: exact, and slower.", "--preview-decode",
        panel=PANEL,
    ),
)  # fmt: skip


def check(values: Mapping[str, Any], batch: Batch) -> None:
    """Raises UsageError for what cannot be written, or would replace a file, before anything is loaded."""
    _check_urls(values, batch)
    if sheet := values["contact_sheet"]:
        _check_picture("--contact-sheet", sheet)
        if sheet.exists() and not (batch.outputs.overwrite or batch.resume):
            raise UsageError(f"--contact-sheet {sheet} is there already", "choose another, or pass --overwrite")
    if values["gallery"]:
        gallery.check(values["gallery"])
    shown = values.get("preview", "none")
    if shown not in ("none", "terminal"):
        _check_picture("--preview", Path(shown))
        if Path(shown).exists() and not _is_preview(Path(shown)):
            raise UsageError(f"--preview {shown} is a file that is no preview", "choose another name")
    elif shown == "none" and (values.get("preview_every") or values.get("preview_decode")):
        raise UsageError("--preview-every and --preview-decode need --preview", "pass --preview terminal, or a file")


def _check_urls(values: Mapping[str, Any], batch: Batch) -> None:
    """Sheets, galleries and previews are files here; of results at URLs they are made from what is fetched back, as
    `remote.shown` names it."""
    there = batch.outputs.template or ""
    secret = urls.is_url(there) and "@" in urls.split(there)[1]
    for given in ("contact_sheet", "gallery", "preview"):
        name = f"--{given.replace('_', '-')}"
        if urls.was_url(Path(values.get(given) or "")):
            raise UsageError(f"{name} is made here, not at a URL", "name a place on a disk")
        if secret and given != "preview" and values[given]:
            raise UsageError(f"{name} cannot show results that need a password", "leave it out")
    if urls.is_url(there):
        stores.check_bucket(there)


def _check_picture(name: str, path: Path) -> None:
    if path.suffix[1:].lower() not in FORMATS["image"]:
        raise UsageError(f"{name} {path} is no picture's name", f"end it in one of: {', '.join(FORMATS['image'])}")
    if path.is_dir():
        raise UsageError(f"{name} {path} is a folder", "name a file")
    check_replaceable(path)


def _is_preview(path: Path) -> bool:
    from ..engine.media import read_text

    try:
        return read_text(path).get("parameters") == MARK
    except DiffpipeError:
        return False


# Previews


def previews(values: Mapping[str, Any]) -> Any:
    """How the run's previews are made (see engine.preview), None for none."""
    shown = values.get("preview", "none")
    if shown == "none":
        return None
    from ..engine.running.preview import Preview

    show = _in_terminal() if shown == "terminal" else _in_file(Path(shown))
    return Preview(show, values["preview_every"], values["preview_decode"]) if show else None


def _in_file(path: Path) -> Callable[[Any], None]:
    from ..engine.media import write_image

    def show(picture: Any) -> None:
        write_image(picture, path, overwrite=True, text={"parameters": MARK})

    return show


def _in_terminal() -> Callable[[Any], None] | None:
    """Pictures on stderr: in kitty's or sixel graphics where the terminal says that it has them, else half blocks."""
    if not sys.stderr.isatty():
        output.warn("--preview terminal: standard error is no terminal; there are no previews")
        return None
    try:
        renderable = textual_image_seam.renderable()
    except ImportError:
        raise UsageError(
            "--preview terminal needs the package textual-image", "pip install 'diffpipe[preview]'"
        ) from None

    console = output.console()

    def show(picture: Any) -> None:
        console.print(renderable(picture, width=min(WIDTH, console.width), height="auto"))

    return show


# What came out


class Looks:
    """The contact sheet and gallery of a run; trouble with them is told once and costs no item."""

    def __init__(self, manifest: Manifest, batch: Batch, sheet: Any, page: Any) -> None:
        self.manifest, self.batch, self.sheet, self.page = manifest, batch, sheet, page
        self._told = False

    def add(self, request: Request, artifacts: tuple[Artifact, ...]) -> None:
        with self._forgiving():
            if self.sheet:
                self.sheet.add(artifacts, caption(request, self.batch))
        with self._forgiving():
            if self.page:
                self.page.add(artifacts, gallery.settings_of(request, self.manifest, self.batch.name))

    def earlier(self, record: Record) -> None:
        """Add what an earlier run made: its arguments are in the files, unless they were to say nothing."""
        if record.state != "done" or self.batch.journal is None or not (self.sheet or self.page):
            return
        paths = tuple(self.batch.journal.paths(record))
        with self._forgiving():
            made = [_document(path) for path in paths]
            called, fps = _call_in(made[0])
            request = Request(0, record.seed or 0, called, paths, fps=fps, id=record.id, item=record.item)
            self.add(request, tuple(self._artifact(request, record, *one) for one in zip(paths, made, strict=True)))

    def _artifact(self, request: Request, record: Record, path: str, made: Document | None) -> Artifact:
        sizes = made.result.sizes if made else {}
        return Artifact(path, request.seed, 0, self.manifest.kind, record.seconds, sizes)

    def end(self) -> None:
        with self._forgiving():
            if self.sheet:
                self.sheet.write()

    @contextmanager
    def _forgiving(self) -> Iterator[None]:
        try:
            yield
        except (OSError, DiffpipeError) as error:
            if not self._told:
                told = refused(error) if isinstance(error, OSError) else None
                output.warn(f"the contact sheet or gallery lacks results: {told.message if told else error}")
                self._told = True


def _document(path: str) -> Document | None:
    """What a file says it was made with; None where it says nothing."""
    from ..engine.media import read_text

    text = read_text(fetching.local(path)).get("diffpipe")
    return parsed(text) if text else None


def _call_in(made: Document | None) -> tuple[Arguments, float | None]:
    """The call arguments, input files by name alone, and the frames a second that were asked for."""
    if made is None:
        return {}, None
    media = {
        name: [file.file for file in files] if isinstance(files, list) else files.file
        for name, files in made.media.items()
    }
    return {**made.arguments, **media}, made.fps


def caption(request: Request, batch: Batch) -> str:
    """The prompt, and on a line of its own what varies in a sweep, or else the seed."""
    values = {**request.arguments, "seed": request.seed}
    media = [name for name in values if name in batch.flags and batch.flags[name].kind in MEDIA_KINDS]
    values |= {name: gallery.names(values[name]) for name in media}  # a sheet tells no folders
    swept = [f"{name}={values[name]}" for name in batch.swept if name in values and name != "prompt"]
    return f"{values.get('prompt') or ''}\n{', '.join(swept) or f'seed {request.seed}'}"


@contextmanager
def opened(values: Mapping[str, Any], manifest: Manifest, batch: Batch) -> Iterator[Looks]:
    """The run's looks to add to; written when the run ends, whatever ends it."""
    sheet = None
    if values["contact_sheet"]:
        from ..engine.running.sheet import Sheet

        sheet = Sheet(values["contact_sheet"], overwrite=batch.outputs.overwrite or batch.resume)
    if not values["gallery"]:
        looks = Looks(manifest, batch, sheet, None)
        try:
            yield looks
        finally:
            looks.end()
        return
    from ..engine.running.sheet import write_thumbnail

    with gallery.opened(values["gallery"], write_thumbnail) as page:
        looks = Looks(manifest, batch, sheet, page)
        try:
            yield looks
        finally:
            looks.end()


def watched(outcomes: Iterator[Outcome], looks: Looks) -> Iterator[Outcome]:
    """The outcomes as they come, each shown once the run is done with it."""
    for outcome in outcomes:
        try:
            yield outcome
        finally:
            if outcome.error is None:
                looks.add(outcome.request, outcome.artifacts)
