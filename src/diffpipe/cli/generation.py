"""The second journey: a built pipeline and options -> results, each noted and reported as it is made.

plan       what all items share, where they come from, what the journal has of them
validate   every item, before anything is loaded
open       the journal, the files the pipeline stands on, the sheet and the gallery
make       on a Ray cluster, in a warm worker, or in this process
finish     what was made, and the exit code
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from ..batch import held_folder
from ..batch.output_paths import base_of
from ..cache import measured
from ..cache.entry import Entry
from ..cache.store import Store
from ..catalog.plugins import providers
from ..catalog.vocabulary import read
from ..core.errors import Exit
from ..core.flag import Flag
from ..core.manifest import Manifest
from ..core.request import Outcome, Request
from ..results.metadata import About
from ..runners import inputs
from ..runners.job import Callbacks, Job, Previews
from . import batch_run, output, previews, ray_options, workers
from .shared_arguments import batch_of


@dataclass
class Generation:
    """One run of `generate`. The stages are called in their order; each leaves what the next ones need."""

    reference: str
    entry: Entry
    manifest: Manifest
    flags: list[Flag]
    values: Mapping[str, Any]
    explicit: set[str]

    def __call__(self) -> Exit:
        with ExitStack() as stack:
            self.plan(stack)
            self.validate()
            if self.values["dry_run"]:
                return batch_run.listed(self.source, self.batch, self.keeps_going, self.values["json"])
            self.open(stack)
            self.make()
            return self.finish()

    @property
    def keeps_going(self) -> bool:
        return bool(self.values["keep_going"])

    def plan(self, stack: ExitStack) -> None:
        """What is asked for. A journal that is there says which items are known; a dry run changes nothing in it."""
        values = self.values
        wish = workers.keep_warm(values["keep_warm"], allowed=values["worker"])
        self.worker = workers.PipelineWorker(Store(), self.entry, self.manifest, wish)
        self.source = batch_run.source(values["prompts_from"], values["prompts_format"], stack)
        self.batch = batch_of(self.reference, self.entry, self.manifest, self.flags, values, self.explicit)
        self.journal = batch_run.journal_path(values, self.batch)
        if self.journal and self.journal.exists():
            self.batch = batch_run.with_journal(self.batch, self.journal, stack, to_read=values["dry_run"])
        previews.check(values, self.batch)

    def validate(self) -> None:
        """Check every item of a source that can be read twice; how many there are, where that is known."""
        self.total = batch_run.validated(self.source, self.batch, self.keeps_going) if self.source.again else None

    def open(self, stack: ExitStack) -> None:
        """Everything that is held while items are made. Raises CacheError for files that changed since the build."""
        from ..cache.verify import locate

        if self.journal and not self.batch.journal:
            self.batch = batch_run.with_journal(self.batch, self.journal, stack)
        _warn_of_versions(self.manifest, self.reference)
        self.words = UnknownWords(self.manifest)
        self.words(str(self.batch.arguments.get("prompt") or ""))
        self.located = locate(self.entry, self.manifest)
        with suppress(OSError):  # a cache that may only be read serves as well
            self.entry.touch()
        if self.batch.journal and not (self.batch.resume and self.batch.journal.header):
            self.batch.journal.begin(self.batch.key, self.batch.origin)
        self.alone = self.total == 1 and self.batch.journal is None
        self.views = stack.enter_context(previews.opened(self.values, self.manifest, self.batch))
        self.read = inputs.reader(self.batch.flags, self.batch.fit, _once)
        self.previews = previews.previews(self.values)
        self.job = self._job()

    def make(self) -> None:
        """Make and report every item."""
        self.run = batch_run.Run(
            self.source, self.batch, self._outcomes, self._check_first, self.words, self.values["keep_going"],
            self.values["json"], self.alone, self.views.earlier,
        )  # fmt: skip
        self.run.make_all()

    def finish(self) -> Exit:
        """Say what was made. Raises the error of an item that ended the run."""
        return self.run.finish()

    def _job(self) -> Job:
        """What a runner is told besides the requests."""
        values, seen = self.values, self.previews
        return Job(
            batch_size=values["batch_size"],
            # What comes from a stream is made at once, and --fail-fast stops at the item that failed.
            several=self.source.again and values["keep_going"] is not False,
            fit=self.batch.fit,
            about=None if values["no_metadata"] else About(self.reference, self.batch.fit, values["batch_size"]),
            step_down=values["step_down"],
            previews=Previews(seen.every, seen.decode) if seen else None,
        )

    def _check_first(self, first: Request) -> None:
        """Raises for a first request that cannot work, before the model is loaded."""
        if self.source.stream is not None:
            return
        given = self.read(first)
        sized = {"width", "height"} & set(self.batch.flags)
        if not sized and (picture := next(inputs.frames_of(given), None)):  # results are as large as it
            self.batch.limit({**given, "width": picture.width, "height": picture.height})
        if self.batch.seed is None and not self.batch.swept:
            output.say(f"seed {first.seed}")

    def _outcomes(self, requests: Iterator[Request]) -> Iterator[Outcome]:
        """What becomes of each request, wherever it is made."""
        place = base_of(self.batch.outputs)
        if self.values["runner"] == "ray":
            callbacks = Callbacks(lambda request, done, steps: None, _once)
            made = ray_options.run(self.values, self.entry, self.manifest, requests, self.job, callbacks, self.total)
            yield from previews.watched(held_folder.checked(made, place), self.views)
            return
        with output.steps(self.reference, self.total or 0) as show:
            seen = self.previews
            callbacks = Callbacks(_numbered(show, self.total), _once, seen.show if seen else None)
            link = self.worker.find()
            if link:
                made = self.worker.run(link, requests, self.job, callbacks, alone=self.alone)
            else:
                made = self._here(requests, callbacks)
            yield from previews.watched(held_folder.checked(made, place), self.views)

    def _here(self, requests: Iterator[Request], callbacks: Callbacks) -> Iterator[Outcome]:
        """What becomes of each request, made in this process."""
        from ..runners.local import run_here
        from ..runners.settings import settings_of

        settings = settings_of(self.job, callbacks, self.read, functools.partial(measured.add, self.entry.folder))
        return run_here(self.manifest, self.located, requests, settings)


def _once(line: str) -> None:
    """Warn of what was not warned of yet."""
    if not output.warned(line):
        output.warn(line)


def _numbered(show: Callable[[str, int, int], None], total: int | None) -> Callable[[Request, int, int], None]:
    """Progress with the item's number among those that are made."""
    seen: list[str] = [""]
    number = 0

    def shown(request: Request, done: int, steps: int) -> None:
        nonlocal number
        if request.id != seen[0]:
            seen[0], number = request.id, number + 1
        show(f"{number}/{total or '?'}", done, steps)

    return shown


def _warn_of_versions(manifest: Manifest, reference: str) -> None:
    """Say when diffusers is another version than the flags were read from."""
    from importlib.metadata import version

    built, now = manifest.versions.get("diffusers"), version("diffusers")
    if built != now:
        output.warn(
            f"{reference} was built with diffusers {built}, and {now} is installed; build it again with --force"
        )


class UnknownWords:
    """Tells which words of a prompt a model with a small vocabulary does not know, each once on stderr."""

    def __init__(self, manifest: Manifest) -> None:
        provider = providers().get(manifest.provider)
        self.name = provider.name if provider else ""
        self.known = read(provider.vocabulary) if provider and provider.vocabulary else None
        self.told: set[str] = set()

    def __call__(self, prompt: str) -> list[str]:
        """The warnings of a prompt."""
        if self.known is None:
            return []
        found = []
        for word, near in self.known.unknown_words(prompt).items():
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            found.append(f"the model does not know {word!r}; {hint}diffpipe providers show {self.name} lists its words")
            if word not in self.told:
                output.warn(found[-1])
                self.told.add(word)
        return found
