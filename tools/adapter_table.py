"""Write the table of docs/adapters.md: every format of adapter files, for every family, and what is applied of it.

    python tools/adapter_table.py            prints the table and writes it into docs/adapters.md
    python tools/adapter_table.py --check    exits 1 if it is not current, or a layer is not applied

The files and the expected weights are those of tests/adapter_corpus.
"""

from __future__ import annotations

import re
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
FILE = ROOT / "docs/adapters.md"
MARKS = re.compile(r"(?<=<!-- table: begin -->\n).*(?=<!-- table: end -->)", re.DOTALL)
HEADINGS = ("family", "file", "layers", "applied", "largest error")
# Errors by decades and no finer: the last bits of a product differ from one machine to the next.
STEPS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)


def results() -> Iterator[tuple[str, ...]]:
    """A line of the table for each row of the corpus."""
    import torch
    from adapter_corpus.rows import ROWS
    from adapter_corpus.trial import Tiny, trial

    from diffpipe.core.errors import UsageError

    torch.set_num_threads(1)
    pipelines: dict[str, Tiny] = {}
    with tempfile.TemporaryDirectory() as folder:
        for row in ROWS:
            if row.family not in pipelines:
                pipelines[row.family] = Tiny(row.family)
            try:
                result = trial(row, pipelines[row.family], Path(folder))
            except UsageError as error:
                yield row.family, row.format, "", "refused", error.message
                continue
            yield row.family, row.format, str(result.layers), str(result.applied), rounded(result.error)


def rounded(error: float) -> str:
    return next((f"< {step:.0e}".replace("e-0", "e-") for step in STEPS if error < step), f"{error:.1f}")


def table(rows: list[tuple[str, ...]]) -> str:
    lines = [HEADINGS, ("---",) * len(HEADINGS), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)


def main() -> None:
    sys.path.insert(0, str(ROOT / "tests"))
    rows = list(results())
    missing = [f"{row[0]}: {row[1]}" for row in rows if row[2] != row[3]]
    old = FILE.read_text("utf-8")
    new = MARKS.sub(lambda _: table(rows), old)
    if "--check" in sys.argv[1:]:
        if new != old:
            sys.exit("not current: docs/adapters.md\n  run: python tools/adapter_table.py")
        if missing:
            sys.exit(f"not applied as the format says: {', '.join(missing)}")
        return
    FILE.write_text(new, "utf-8", newline="\n")
    print(table(rows), end="")


if __name__ == "__main__":
    main()
