"""Rows of a prompt file (or one row, from flags alone), sweeps and seeds -> requests, one at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

from ..core.canonical import digest
from ..core.counter import CompactCounter
from ..core.errors import DiffpipeError, UsageError
from ..core.flag import MAX_SEED, MEDIA_KINDS, PER_CALL, Flag
from ..core.request import Request
from ..storage import urls
from .argument_checks import check_files, checked
from .journal import Journal
from .output_paths import Outputs, base_of, paths, whole_template, within
from .prompt_files import MOST, OWN, Row, crossed, shown, typed

SEEDS = 2**32  # seeds are drawn below this: short enough to type, and every tool accepts them
ID = 16  # hex digits of an item's digest that are its id


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
    arguments: Mapping[str, Any]
    outputs: Outputs
    name: str
    key: str
    origin: int
    seed: int | None = None
    count: int = 1
    swept: Mapping[str, list[Any]] = field(default_factory=dict)
    fit: bool = False
    journal: Journal | None = None
    resume: bool = False
    retry: bool = False
    thorough: bool = True
    limit: Callable[[Mapping[str, Any]], None] = lambda arguments: None

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
    line: Mapping[str, Any]


@dataclass
class _Used:
    """What the items so far have used up. The counters are all that grows with the number of items."""

    seen: CompactCounter = field(default_factory=CompactCounter)  # rows without a seed, ids
    taken: CompactCounter = field(default_factory=CompactCounter)  # paths
    results: int = 0


@dataclass(frozen=True)
class _Wanted:
    """An item before it has an id and paths."""

    row: Row
    arguments: Mapping[str, Any]
    seed: int
    id: str | None  # as given
    drawn: bool  # whether the seed was not given, which makes it the item's own
    template: str | None  # as given by the row
    first: bool  # of its row


def items(rows: Iterable[Row], batch: Batch) -> Iterator[Request | Refused | Earlier]:
    """What is to be made of each row: every combination of swept values, `count` times, in order.

    The same rows and batch give the same items. Raises UsageError for an --output that cannot be used.
    """
    used = _Used()
    urls.forget()
    template = whole_template(batch.outputs)
    for row in rows:
        for wanted in _wanted(row, batch, used):
            if isinstance(wanted, Refused):
                yield wanted
                continue
            try:
                yield _item(wanted, batch, used, template)
            except DiffpipeError as error:
                yield Refused(wanted.id or _row_id(row), _located(row, error))


def _wanted(row: Row, batch: Batch, used: _Used) -> Iterator[_Wanted | Refused]:
    """The items of a row, their arguments checked."""
    try:
        values = typed(row, batch.flags, batch.names | OWN.keys())
        own = {name: values.pop(name) for name in OWN if name in values}
        count = own.get("count", batch.count)
        _check_row(row, {**values, **own}, count, batch)
    except UsageError as error:
        yield Refused(_row_id(row), error)
        return
    several = count * prod(map(len, batch.swept.values())) > 1
    drawn: int | None = None
    for at, swept in enumerate(crossed(batch.swept)):
        call = {**batch.arguments, **values, **swept}
        seed = call.pop("seed", own.get("seed", batch.seed))
        try:
            arguments = _call(call, batch)
            _check_seed(seed, count)
        except DiffpipeError as error:
            yield Refused(_row_id(row), _located(row, error))
            continue
        if seed is None and drawn is None:
            drawn = _drawn_seed(own, {**batch.arguments, **values}, count, batch, used)
        first = drawn if seed is None else seed
        assert first is not None
        for number in range(count):
            item_id = f"{own['id']}-{at * count + number + 1}" if "id" in own and several else own.get("id")
            earliest = not at and not number
            own_seed = seed is None and not batch.fit  # --fit may make two swept values one
            yield _Wanted(row, arguments, first + number, item_id, own_seed, own.get("output"), earliest)


def _item(wanted: _Wanted, batch: Batch, used: _Used, template: tuple[str, str]) -> Request | Earlier:
    """A request with its own id and paths. Raises UsageError where it cannot have them."""
    item = digest({"arguments": _lasting(wanted.arguments, batch), "seed": wanted.seed, "key": batch.key})
    item_id = _item_id(wanted, item, used)
    per_call = max(int(wanted.arguments.get(name) or 1) for name in PER_CALL)
    index, used.results = used.results, used.results + per_call
    own: list[str] = []
    if batch.journal and (before := batch.journal.last(item_id)):
        if earlier := _earlier(item_id, item, before, batch, batch.journal):
            return earlier
        own = batch.journal.paths(before) if before["status"] == "started" else []
    outputs = within(batch.outputs, wanted.template) if wanted.template else batch.outputs
    values = {
        "name": batch.name,
        "key": batch.key[:12],
        "id": item_id,
        "seed": wanted.seed,
        "prompt": str(wanted.arguments.get("prompt") or ""),
    }
    numbers = range(index + 1, used.results + 1)
    filled = whole_template(outputs) if wanted.template else template
    unique = bool(wanted.template) and wanted.first
    found = paths(filled, values, numbers, outputs, used.taken, own, unique=unique)
    overwrite = outputs.overwrite or bool(own)
    return Request(index, wanted.seed, wanted.arguments, tuple(found), overwrite, outputs.fps, item_id, item)


def _item_id(wanted: _Wanted, item: str, used: _Used) -> str:
    """The id given, or the start of the item's digest, with a number where the same item is asked for again."""
    if wanted.id is not None:
        if used.seen.add(f"id {wanted.id}") > 1:
            raise UsageError(f"the id {shown(wanted.id)} is there already", "give each item its own, or none")
        return wanted.id
    number = 1 if wanted.drawn else used.seen.add(item)
    return item[:ID] if number == 1 else f"{item[:ID]}-{number}"


def _earlier(item_id: str, item: str, before: Mapping[str, Any], batch: Batch, journal: Journal) -> Earlier | None:
    """What the journal says of an item that is not to be made now.

    Raises UsageError for one that it has already, unless the run resumes or overwrites.
    """
    if before["status"] == "started":
        return None
    if before["item"] != item:
        if batch.outputs.overwrite or before["status"] == "failed":
            return None
        problem = f"the journal has {item_id} with another prompt, seed or argument"
        raise UsageError(problem, "give it another id, or pass --overwrite")
    if before["status"] == "failed":
        return Earlier(item_id, before) if batch.resume and not batch.retry else None
    if batch.resume:
        return Earlier(item_id, before) if not batch.thorough or _intact(before, batch, journal) else None
    if batch.outputs.overwrite:
        return None
    hint = "pass --resume to skip what is done, --overwrite to make it again, or another -o or --seed for new ones"
    raise UsageError(f"{item_id} was made already", hint)


def _intact(before: Mapping[str, Any], batch: Batch, journal: Journal) -> bool:
    url = urls.is_url(batch.outputs.template or "")
    return journal.intact(before, base_of(batch.outputs) if url else "")


def _lasting(arguments: Mapping[str, Any], batch: Batch) -> Mapping[str, Any]:
    """Call arguments as what an item is known by: a URL that is signed anew is the same file."""
    if batch.media.isdisjoint(arguments):
        return arguments
    return {name: urls.lasting(value) if name in batch.media else value for name, value in arguments.items()}


def _drawn_seed(own: Mapping[str, Any], given: Mapping[str, Any], count: int, batch: Batch, used: _Used) -> int:
    """The seed of a row that gives none: of the batch's origin, its arguments, and its id or how often it came before.

    Swept values have no part in it: what a sweep changes is compared on the same noise.
    """
    row = digest({"arguments": _lasting(given, batch), "count": count, "key": batch.key})
    which = f"id {own['id']}" if "id" in own else str(used.seen.add(f"row {row}"))
    return int(digest([batch.origin, row, which])[:16], 16) % (SEEDS - count)


def _call(call: Mapping[str, Any], batch: Batch) -> dict[str, Any]:
    arguments = checked(batch.flags, call, fit=batch.fit)
    check_files(batch.flags, arguments)
    batch.limit(arguments)
    return arguments


def _check_row(row: Row, values: Mapping[str, Any], count: int, batch: Batch) -> None:
    """Raises UsageError for what cannot be in a row: values that are swept, a count that is too large, an empty id."""
    for name in batch.swept:
        if name in values:
            raise UsageError(f"{row.where}: {name} is swept by --sweep", "leave it out of one of them")
    if not 1 <= count <= MOST:
        raise _located(row, UsageError(f"--count {count} is out of range", f"give from 1 to {MOST}"))
    if any(not values[name].isprintable() for name in ("id", "output") if name in values):
        raise UsageError(f"{row.where}: id and output must be text on one line", "leave control characters out")


def _check_seed(seed: int | None, count: int) -> None:
    if seed is not None and not 0 <= seed <= MAX_SEED - count + 1:
        more = f", and --count {count} needs as many" if count > 1 else ""
        raise UsageError(f"--seed {seed} is out of range", f"seeds go from 0 to {MAX_SEED}{more}")


def _located(row: Row, error: DiffpipeError) -> DiffpipeError:
    """An error with the line it comes from."""
    return type(error)(f"{row.where}: {error.message}", error.hint, error.exit_code) if row.where else error


def _row_id(row: Row) -> str:
    given = row.values.get("id")
    return given if isinstance(given, str) and given.strip() else f"line-{row.number}"
