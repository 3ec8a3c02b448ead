"""What bounds a batch on 1, 8, 64 and 1,000 GPUs: the table of docs/ray.md, from times and bandwidths.

    python tools/capacity.py             writes the table into docs/ray.md
    python tools/capacity.py --check     exits 1 if it is not current
    python tools/capacity.py --print --item-seconds 3.5 --uplink 0.125    another case, on stdout

Seconds an item and sizes are public or measured figures (see the constants), bandwidths are what a common machine room
has; each is an option.
"""

from __future__ import annotations

import argparse
import math
import sys
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path

from diffpipe.runners.ray_cluster.dispatch import DRIVER_SECONDS, MOST, ROW_SECONDS

FILE = Path(__file__).resolve().parents[1] / "docs/ray.md"
BEGIN, END = "<!-- capacity: tools/capacity.py -->\n", "<!-- end of capacity -->\n"
GPUS = (1, 8, 64, 1000)


@dataclass(frozen=True)
class Case:
    """Seconds, GB and GB/s (1 GB is 1e9 bytes).

    `item_seconds`: FLUX.1-dev in bfloat16, 1024 x 1024, 50 steps on an H100 (the hub's blog on quantization in
    diffusers); its `weights`: 31.4 GiB loaded. `item_size`: a PNG of that size. `copying`: from pageable memory to a
    GPU (vllm-omni#4896). `journal`, `journal_url`: to note an item that lies here (hashed, synced) and one at a URL,
    measured on a virtual machine with 2 cores and a shared disk.
    """

    item_seconds: float = 12.0
    item_size: float = 0.0016
    weights: float = 33.7
    gpus_per_node: int = 8
    uplink: float = 1.25  # from the hub to the machine room, 10 Gbit/s
    storage: float = 10.0  # of a bucket or shared folder, all readers and writers together
    node: float = 3.1  # of a node's network, 25 Gbit/s
    disk: float = 3.0  # of a node's disk, reading
    copying: float = 1.8
    journal: float = 0.014
    journal_url: float = 0.004


def nodes(case: Case, gpus: int) -> int:
    return -(-gpus // case.gpus_per_node)


def rows_a_second() -> float:
    """How many rows of items the driver hands out at most: what flow.py lets it."""
    return 1 / DRIVER_SECONDS


def items_a_row(case: Case, gpus: int) -> int:
    return min(MOST, max(1, math.ceil(max(ROW_SECONDS, gpus * DRIVER_SECONDS) / case.item_seconds)))


# Items a second, each bound by one thing alone.
BOUNDS: dict[str, Callable[[Case, int], float]] = {
    "GPUs": lambda case, gpus: gpus / case.item_seconds,
    "driver, rows": lambda case, gpus: rows_a_second() * items_a_row(case, gpus),
    "driver, journal of files here": lambda case, gpus: 1 / case.journal,
    "driver's network, files here": lambda case, gpus: case.node / case.item_size,
    "driver, journal of URLs": lambda case, gpus: 1 / case.journal_url,
    "storage, URLs": lambda case, gpus: min(case.storage, nodes(case, gpus) * case.node) / case.item_size,
}
HERE = ("GPUs", "driver, rows", "driver, journal of files here", "driver's network, files here")
URLS = ("GPUs", "driver, rows", "driver, journal of URLs", "storage, URLs")


def lowest(case: Case, gpus: int, names: tuple[str, ...]) -> tuple[float, str]:
    return min((BOUNDS[name](case, gpus), name) for name in names)


def from_hub(case: Case, gpus: int) -> float:
    """Seconds until every node has fetched the weights from the hub, through one uplink."""
    count = nodes(case, gpus)
    return case.weights * count / min(case.uplink, count * case.node)


def from_bundle(case: Case, gpus: int) -> float:
    """Seconds until every node has read the bundle from storage."""
    count = nodes(case, gpus)
    return case.weights * count / min(case.storage, count * case.node)


def loading(case: Case) -> float:
    """Seconds to load: the node reads its disk once for all its workers, then each copies to its GPU."""
    return case.weights / case.disk + case.weights / case.copying


def table(case: Case) -> Iterator[str]:
    yield "| GPUs | nodes | made by the GPUs | results as the driver's files | results at URLs | weights from the hub |"
    yield "|---|---|---|---|---|---|"
    for gpus in GPUS:
        here, url = lowest(case, gpus, HERE), lowest(case, gpus, URLS)
        yield (
            f"| {gpus:,} | {nodes(case, gpus)} | {rate(BOUNDS['GPUs'](case, gpus))} | {_told(here)} | {_told(url)} "
            f"| {clock(from_hub(case, gpus))}, by a bundle {clock(from_bundle(case, gpus))} |"
        )


def _told(bound: tuple[float, str]) -> str:
    return f"{rate(bound[0])}: {bound[1].partition(',')[0]}"


def rate(items: float) -> str:
    return f"{items:.2f}/s" if items < 10 else f"{items:,.0f}/s"


def clock(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:.1f} h"
    )


def sums(case: Case, gpus: int) -> Iterator[str]:
    """The sums behind a line of the table."""
    count, row = nodes(case, gpus), items_a_row(case, gpus)
    yield f"The sums, for {gpus:,} GPUs and {case.item_seconds:g} s an item:"
    yield ""
    yield f"- GPUs: {gpus:,} / {case.item_seconds:g} s = {rate(BOUNDS['GPUs'](case, gpus))}"
    yield (
        f"- driver, rows: 1 / {DRIVER_SECONDS:g} s = {rows_a_second():.0f} rows/s, of {row} items each "
        f"= {rate(BOUNDS['driver, rows'](case, gpus))}"
    )
    yield (
        f"- driver, journal: 1 / {case.journal * 1000:g} ms = {rate(1 / case.journal)} for files that are hashed and "
        f"synced here; 1 / {case.journal_url * 1000:g} ms = {rate(1 / case.journal_url)} for those at URLs"
    )
    size = case.item_size * 1000
    yield (
        f"- results: {case.node:g} GB/s / {size:g} MB = {rate(case.node / case.item_size)} into the driver; "
        f"{min(case.storage, count * case.node):g} GB/s / {size:g} MB = {rate(BOUNDS['storage, URLs'](case, gpus))} "
        "into storage"
    )
    yield (
        f"- weights: {count} nodes x {case.weights:g} GB / {min(case.uplink, count * case.node):g} GB/s = "
        f"{clock(from_hub(case, gpus))} from the hub, / {min(case.storage, count * case.node):g} GB/s = "
        f"{clock(from_bundle(case, gpus))} from storage"
    )
    yield (
        f"- loading, once a node has them: {case.weights:g} GB / {case.disk:g} GB/s + {case.weights:g} GB / "
        f"{case.copying:g} GB/s = {clock(loading(case))}"
    )


def text(case: Case) -> str:
    """Both tables and the sums, as Markdown."""
    fast = replace(case, item_seconds=case.item_seconds / 12)
    parts = [
        f"{case.item_seconds:g} s an item, {case.weights:g} GB of weights, {case.item_size * 1000:g} MB a result "
        f"(FLUX.1-dev, 50 steps, H100), {case.gpus_per_node} GPUs a node; uplink {case.uplink:g} GB/s, storage "
        f"{case.storage:g} GB/s, each node {case.node:g} GB/s. Each column gives what bounds it:",
        "",
        *table(case),
        "",
        f"The same with {fast.item_seconds:g} s an item (a model distilled to 4 steps):",
        "",
        *table(fast),
        "",
        *sums(fast, 1000),
        "",
    ]
    # Broken as the page's own text is; lists and tables are lines of their own.
    return "\n".join(part if part[:1] in "|-" else textwrap.fill(part, 120) for part in parts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--print", action="store_true")
    for one in fields(Case):
        kind = type(one.default)
        parser.add_argument(f"--{one.name.replace('_', '-')}", type=kind, default=one.default, help=f"{one.default:g}")
    given = vars(parser.parse_args())
    case = Case(**{one.name: given[one.name] for one in fields(Case)})
    if given["print"]:
        print("\n".join([*table(case), "", *sums(case, 1000)]))
        return
    before = FILE.read_text(encoding="utf-8")
    head, _, rest = before.partition(BEGIN)
    after = head + BEGIN + "\n" + text(Case()) + "\n" + END + rest.partition(END)[2]
    if given["check"]:
        if before != after:
            sys.exit("docs/ray.md is not current: run tools/capacity.py")
        return
    FILE.write_text(after, encoding="utf-8")


if __name__ == "__main__":
    main()
