"""Rows of a prompt file (or one row, from flags alone), sweeps and seeds -> requests, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import TypeVar

from ..core.canonical import JsonValue, digest
from ..core.counter import CompactCounter
from ..core.errors import DiffpipeError, UsageError
from ..core.flag import MAX_SEED, MEDIA_KINDS, PER_CALL, Arguments, Flag
from ..core.request import Request
from ..storage import presence, urls
from .argument_checks import check_files, checked
from .argument_values import MOST, OWN, shown
from .journal import Journal
from .journal_lines import Record
from .output_paths import Outputs, base_of, paths, whole_template, within
from .prompt_files import Row, typed
from .sweeps import crossed

SEEDS = 2**32  # seeds are drawn below this: short enough to type, and every tool accepts them
ID = 16  # hex digits of an item's digest that are its id

T = TypeVar("T")


@dataclass(frozen=True)
class Batch:
    """What all items of a run share.

    `names`: the call arguments there may be, with flags or without. `arguments`: from presets and flags, of the flags'
    types. `swept`: name -> values. `seed` of each row that gives none; None for one derived from `origin` and the row,
    so that it does not depend on the row's place. `fit`: see `checked`. `journal`, where one is kept: items in it are
    refused as made already, unless `resume` (skip what is done), `retry` (and make again what failed) or overwriting.
    `limit` raises for call arguments that this machine cannot work on.
    `thorough`: whether files that the journal has are read to see that they are what was written.
    """

    flags: Mapping[str, Flag]
    names: frozenset[str]
    arguments: Arguments
    outputs: Outputs
    name: str
    key: str
    origin: int
    seed: int | None = None
    count: int = 1
    swept: Mapping[str, Sequence[JsonValue]] = field(default_factory=dict)
    fit: bool = False
    journal: Journal | None = None
    resume: bool = False
    retry: bool = False
    thorough: bool = True
    limit: Callable[[Arguments], None] = lambda arguments: None

    @cached_property
    def media(self) -> frozenset[str]:
        """The names of the arguments that are files."""
        return frozenset(name for name, flag in self.flags.items() if flag.kind in MEDIA_KINDS)


@dataclass(frozen=True)
class Refused:
    """An item, or a whole row, that cannot be made."""

    id: str
    error: DiffpipeError


@dataclass(frozen=True)
class Earlier:
    """An item that the journal has as done or failed: its last line there."""

    id: str
    record: Record


@dataclass(frozen=True)
class _Settings:
    """What a row says: call arguments, and what an item may have besides (None for what it does not give)."""

    row: Row
    arguments: Arguments
    id: str | None
    output: str | None
    seed: int | None
    count: int


@dataclass(frozen=True)
class _Call:
    """One call of the pipeline, checked, before its item has an id and paths.

    `number` counts the calls of a row from 1. `drawn`: whether the seed was not given, which makes it the item's own.
    """

    settings: _Settings
    arguments: Arguments
    seed: int
    number: int
    drawn: bool


def items(rows: Iterable[Row], batch: Batch) -> Iterator[Request | Refused | Earlier]:
    """What is to be made of each row: every combination of swept values, `count` times, in order.

    The same rows and batch give the same items. Raises UsageError for an --output that cannot be used.
    """
    presence.forget()
    planner = _Planner(batch)
    for row in rows:
        yield from planner.items(row)


class _Planner:
    """Makes items of rows, one after another. The counters are all that grows with the number of items."""

    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.template = whole_template(batch.outputs)
        self.seen = CompactCounter()  # rows without a seed, items, ids that were given
        self.taken = CompactCounter()  # paths
        self.results = 0

    def items(self, row: Row) -> Iterator[Request | Refused | Earlier]:
        try:
            settings = self._settings(row)
        except UsageError as error:
            yield Refused(_row_id(row), error)
            return
        for call in self._calls(settings):
            if isinstance(call, Refused):
                yield call
                continue
            item_id = self._given_id(call)
            try:
                yield self._item(call, item_id)
            except DiffpipeError as error:
                yield Refused(item_id or _row_id(row), _located(row, error))

    # A row's calls

    def _settings(self, row: Row) -> _Settings:
        """A row's values, typed. Raises UsageError for what cannot be in a row."""
        values = typed(row, self.batch.flags, self.batch.names | OWN.keys())
        for name in self.batch.swept:
            if name in values:
                raise UsageError(f"{row.where}: {name} is swept by --sweep", "leave it out of one of them")
        item_id, output = _own(values, "id", str), _own(values, "output", str)
        seed, count = _own(values, "seed", int), _own(values, "count", int)
        settings = _Settings(row, values, item_id, output, seed, self.batch.count if count is None else count)
        if not 1 <= settings.count <= MOST:
            raise _located(row, UsageError(f"--count {settings.count} is out of range", f"give from 1 to {MOST}"))
        if not all(text.isprintable() for text in (item_id, output) if text is not None):
            raise UsageError(f"{row.where}: id and output must be text on one line", "leave control characters out")
        return settings

    def _calls(self, settings: _Settings) -> Iterator[_Call | Refused]:
        """The calls of a row: each combination of swept values with each of its seeds."""
        drawn: int | None = None
        for place, swept in enumerate(crossed(self.batch.swept)):
            seed = self.batch.seed if settings.seed is None else settings.seed
            seed = seed if (own := _own(swept, "seed", int)) is None else own
            try:
                arguments = self._checked({**self.batch.arguments, **settings.arguments, **swept})
                _check_seed(seed, settings.count)
            except DiffpipeError as error:
                yield Refused(_row_id(settings.row), _located(settings.row, error))
                continue
            if seed is None and drawn is None:
                drawn = self._drawn_seed(settings)
            first = drawn if seed is None else seed
            assert first is not None
            for number in range(settings.count):
                number_in_row = place * settings.count + number + 1
                yield _Call(settings, arguments, first + number, number_in_row, seed is None)

    def _checked(self, arguments: Arguments) -> Arguments:
        """Raises DiffpipeError for call arguments that cannot be used."""
        found = checked(self.batch.flags, arguments, fit=self.batch.fit)
        check_files(self.batch.flags, found)
        self.batch.limit(found)
        return found

    def _drawn_seed(self, settings: _Settings) -> int:
        """The seed of a row that gives none: of the batch's origin, its arguments, and its id or how often it came
        before.

        Swept values have no part in it: what a sweep changes is compared on the same noise.
        """
        given = _lasting({**self.batch.arguments, **settings.arguments}, self.batch.media)
        row = digest({"arguments": given, "count": settings.count, "key": self.batch.key})
        which = f"id {settings.id}" if settings.id is not None else str(self.seen.add(f"row {row}"))
        return int(digest([self.batch.origin, row, which])[:16], 16) % (SEEDS - settings.count)

    # An item's id and paths

    def _given_id(self, call: _Call) -> str | None:
        """The id that the row gives, numbered where it is that of several items."""
        settings = call.settings
        if settings.id is None:
            return None
        several = settings.count * prod(map(len, self.batch.swept.values())) > 1
        return f"{settings.id}-{call.number}" if several else settings.id

    def _item(self, call: _Call, given_id: str | None) -> Request | Earlier:
        """A call as a request with its own id and paths. Raises DiffpipeError where it cannot have them."""
        batch = self.batch
        item = digest({"arguments": _lasting(call.arguments, batch.media), "seed": call.seed, "key": batch.key})
        item_id = self._id(call, item, given_id)
        index = self.results
        self.results += max(int(call.arguments.get(name) or 1) for name in PER_CALL)
        own: list[str] = []
        if batch.journal and (record := batch.journal.last(item_id)):
            if earlier := _earlier(item, record, batch, batch.journal):
                return earlier
            own = batch.journal.paths(record) if record.state == "started" else []
        found = self._paths(call, item_id, range(index + 1, self.results + 1), own)
        overwrite = batch.outputs.overwrite or bool(own)
        return Request(index, call.seed, call.arguments, tuple(found), overwrite, batch.outputs.fps, item_id, item)

    def _id(self, call: _Call, item: str, given: str | None) -> str:
        """The id given, or the start of the item's digest, with a number where the same item is asked for again."""
        if given is not None:
            if self.seen.add(f"id {given}") > 1:
                raise UsageError(f"the id {shown(given)} is there already", "give each item its own, or none")
            return given
        # A seed that was drawn is of one row alone; but --fit may make two swept values one.
        number = 1 if call.drawn and not self.batch.fit else self.seen.add(item)
        return item[:ID] if number == 1 else f"{item[:ID]}-{number}"

    def _paths(self, call: _Call, item_id: str, numbers: Iterable[int], own: Collection[str]) -> list[str]:
        """The paths of an item's results, which have these numbers in the run. `own` are the item's already."""
        outputs, template, unique = self.batch.outputs, self.template, False
        if call.settings.output:
            outputs = within(outputs, call.settings.output)
            template, unique = whole_template(outputs), call.number == 1
        values: dict[str, int | str] = {
            "name": self.batch.name,
            "key": self.batch.key[:12],
            "id": item_id,
            "seed": call.seed,
            "prompt": str(call.arguments.get("prompt") or ""),
        }
        return paths(template, values, numbers, outputs, self.taken, own, unique=unique)


def _own(values: dict[str, JsonValue], name: str, kind: type[T]) -> T | None:
    """What an item may have besides call arguments, taken out of its values."""
    value = values.pop(name, None)
    return value if isinstance(value, kind) else None


def _check_seed(seed: int | None, count: int) -> None:
    if seed is not None and not 0 <= seed <= MAX_SEED - count + 1:
        more = f", and --count {count} needs as many" if count > 1 else ""
        raise UsageError(f"--seed {seed} is out of range", f"seeds go from 0 to {MAX_SEED}{more}")


def _lasting(arguments: Arguments, media: frozenset[str]) -> Arguments:
    """Call arguments as what an item is known by: a URL that is signed anew is the same file."""
    if media.isdisjoint(arguments):
        return arguments
    return {name: urls.lasting(value) if name in media else value for name, value in arguments.items()}


def _earlier(item: str, record: Record, batch: Batch, journal: Journal) -> Earlier | None:
    """What the journal says of an item that is not to be made now.

    Raises UsageError for one that it has already, unless the run resumes or overwrites.
    """
    overwrite = batch.outputs.overwrite
    if record.state == "started":
        return None
    if record.item != item:
        if overwrite or record.state == "failed":
            return None
        problem = f"the journal has {record.id} with another prompt, seed or argument"
        raise UsageError(problem, "give it another id, or pass --overwrite")
    if record.state == "failed":
        return Earlier(record.id, record) if batch.resume and not batch.retry else None
    if batch.resume:
        return Earlier(record.id, record) if not batch.thorough or _intact(record, batch, journal) else None
    if overwrite:
        return None
    hint = "pass --resume to skip what is done, --overwrite to make it again, or another -o or --seed for new ones"
    raise UsageError(f"{record.id} was made already", hint)


def _intact(record: Record, batch: Batch, journal: Journal) -> bool:
    url = urls.is_url(batch.outputs.template or "")
    return journal.intact(record, base_of(batch.outputs) if url else "")


def _located(row: Row, error: DiffpipeError) -> DiffpipeError:
    """An error with the line it comes from."""
    return type(error)(f"{row.where}: {error.message}", error.hint, error.exit_code) if row.where else error


def _row_id(row: Row) -> str:
    given = row.values.get("id")
    return given if isinstance(given, str) and given.strip() else f"line-{row.number}"
