"""What a run leaves on the device of paper, and moves to it: a line of JSON for a loaded pipeline and for each item.

A process calls `take` before its command begins. Nothing is collected before memory is read: what only the garbage
collector would find is still there on a GPU, too.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from . import device

# Prompts of items that come to grief in the middle of denoising: by an error, for want of memory (while the pipeline is
# as it was built), or because the user stops the run.
FAILS, RUNS_OUT, STOPPED = "this one fails", "this one runs out of memory", "this one is stopped"
kept: list[Any] = []  # sessions, whose pipelines stay on the device as in a process that lives on
current = threading.local()  # items of a chunk have threads of their own


def take(file: str, streams: bool = True) -> None:
    """Write notes to `file`. Without `streams` the device has none, as some have none."""
    import torch

    from diffpipe.runners import local

    if not streams:
        del torch.get_device_module(device.NAME).Stream
    loading, making, calling = local.Session.__init__, local.Session.outcomes, local.Session._call

    @functools.wraps(loading)
    def load(self: Any, *args: Any) -> None:
        loading(self, *args)
        kept.append(self)
        atexit.register(note, file)
        note(file)

    @functools.wraps(making)
    def outcomes(self: Any, *args: Any) -> Iterator[Any]:
        for outcome in making(self, *args):
            note(file)
            yield outcome

    @functools.wraps(calling)
    def call(self: Any, settings: Any, described: Any, group: Any, pipe: Any, placed: Any) -> Any:
        from diffpipe.engine.placement import apply

        prompt = group[0].arguments["prompt"] if placed == self.pipeline.built else ""
        current.fault, current.denoisers = FAULTS.get(prompt), [part for _, part in apply.modules(pipe, "denoiser")]
        return calling(self, settings, described, group, pipe, placed)

    torch.nn.modules.module.register_module_forward_pre_hook(come_to_grief)
    local.Session.__init__, local.Session.outcomes, local.Session._call = load, outcomes, call  # type: ignore[method-assign]


def come_to_grief(module: Any, _inputs: Any) -> None:
    """The first call of a denoiser is spared."""
    if getattr(current, "fault", None) and any(module is part for part in current.denoisers):
        current.spared = not getattr(current, "spared", False)
        if not current.spared:
            current.fault()


def fail() -> None:
    raise RuntimeError("what the test wanted")


def run_out() -> None:
    import torch

    raise torch.OutOfMemoryError("what the test wanted")


def stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)


FAULTS = {FAILS: fail, RUNS_OUT: run_out, STOPPED: stop}


def note(file: str) -> None:
    facts = {
        "now": device.memory.now, "peak": device.memory.peak, "moved": device.traffic.size["to"],
        "copies": device.traffic.count["to"], "operations": device.operations.total(),
    }  # fmt: skip
    with open(file, "a", encoding="ascii") as notes:
        notes.write(json.dumps(facts) + "\n")
