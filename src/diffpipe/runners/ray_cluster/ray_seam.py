"""What diffpipe uses of Ray beyond its documentation. Tried with Ray 2.60.0."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow
    from ray.data import DataContext

    from ...engine.seams.seam import Seam

log = logging.getLogger("diffpipe.ray")

# Of Ray Data's settings, which its documentation calls unstable: what each is set to.
DATA_SETTINGS: Mapping[str, object] = {
    "enable_progress_bars": False,
    "print_on_execution_start": False,
    "enable_auto_log_stats": False,
    "target_max_block_size": 1,  # bytes: a row a block, so that each goes on by itself
    "execution_no_progress_timeout_s": -1,  # one video may take hours
}
EXECUTOR = "StreamingExecutor"  # the class of the thread that moves the rows of a dataset
EXECUTOR_ENDS = 120.0  # seconds in which it must end, on a busy machine
MOST_LOADS = "max_consecutive_actor_init_deaths"  # the setting of how many workers may die while they load


def seams() -> Sequence[Seam]:
    from ...engine.seams.seam import Seam

    return (
        Seam(
            "ray",
            "_private.worker.print_to_stdstream",
            buys="what Ray says of its nodes goes to the log, not among the results on stdout",
            without="Ray prints such lines on stdout",
            file="ray/_private/worker.py",
            text="def print_to_stdstream(data, ignore_prefix: bool)",
        ),
        Seam(
            "ray",
            f"data._internal.execution.streaming_executor.{EXECUTOR}",
            buys="a run that ends early waits for Ray Data's thread, which ends the process where it calls Ray later",
            without="such a run may end at once and without a word where the machine is busy",
            file="ray/data/_internal/execution/streaming_executor.py",
            text=f"class {EXECUTOR}(Executor, threading.Thread)",
        ),
        *(
            Seam(
                "ray",
                f"data.DataContext.{name}",
                buys="items go on one by one, in silence, for as long as they take",
                without="Ray Data draws bars, gathers several rows before it goes on, or gives up a slow item",
                file="ray/data/context.py",
                text=f"    {name}: ",
            )
            for name in (*DATA_SETTINGS, MOST_LOADS)
        ),
    )


def keep_off_stdout() -> None:
    """Log what Ray prints of its nodes: it has no setting for that."""
    from ray._private import worker

    def logged(data: Mapping[str, object], ignore_prefix: bool = False) -> None:
        lines = data.get("lines")
        log.info("Ray: %s", " ".join(map(str, lines)) if isinstance(lines, list) else data)

    if hasattr(worker, "print_to_stdstream"):
        worker.print_to_stdstream = logged


def log_missing() -> None:
    """Say in the log, where it takes such lines, which of them do not apply to the Ray that is installed."""
    if log.isEnabledFor(logging.INFO):
        for seam in seams():
            if not seam.applies:
                log.info("ray: no %s as diffpipe knows it: %s", seam.name, seam.without)


@contextmanager
def closed_after(tables: Iterator[pyarrow.Table]) -> Iterator[Iterator[pyarrow.Table]]:
    """The tables of a dataset, which is at rest after the block: it is closed, and its thread has ended.

    Ray Data itself gives the thread two seconds. One that calls Ray after the shutdown ends this process at once.
    """
    try:
        yield tables
    finally:
        if close := getattr(tables, "close", None):
            close()
        for thread in threading.enumerate():
            if type(thread).__name__ == EXECUTOR:
                thread.join(EXECUTOR_ENDS)


def set_up_data(most_loads: int) -> None:
    """Settings of Ray Data for this process. `most_loads`: workers that may die one after the other while they load."""
    import ray.data

    context: DataContext = ray.data.DataContext.get_current()
    for name, value in {**DATA_SETTINGS, MOST_LOADS: most_loads}.items():
        if hasattr(context, name):
            setattr(context, name, value)
