"""What diffpipe uses of Ray beyond its documentation. Tried with Ray 2.60.0."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
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


def set_up_data(most_loads: int) -> None:
    """Settings of Ray Data for this process. `most_loads`: workers that may die one after the other while they load."""
    import ray.data

    context: DataContext = ray.data.DataContext.get_current()
    for name, value in {**DATA_SETTINGS, MOST_LOADS: most_loads}.items():
        if hasattr(context, name):
            setattr(context, name, value)
