"""The errors a user can meet: one line that says what is wrong, one that says what to do, and an exit code."""

from __future__ import annotations

import gc
import itertools
import os
import traceback
from collections.abc import Sequence
from contextlib import suppress
from enum import IntEnum
from types import FrameType, FunctionType


class Exit(IntEnum):
    """Exit codes of the command line (see README, "Exit codes")."""

    OK = 0
    FAILED = 1
    USAGE = 2
    NOT_FOUND = 3
    ACCESS = 4
    OUT_OF_MEMORY = 5
    CACHE = 6
    PARTIAL = 7
    INTERRUPTED = 130


class DiffpipeError(Exception):
    """What is wrong (`message`) and what to do about it (`hint`), both in the user's terms."""

    exit_code: Exit = Exit.FAILED

    def __init__(self, message: str, hint: str = "", exit_code: Exit | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if exit_code is not None:
            self.exit_code = exit_code


class UsageError(DiffpipeError):
    """An option or argument that cannot be used as given."""

    exit_code = Exit.USAGE


class NotFoundError(DiffpipeError):
    """A pipeline, provider, repository, revision or file that does not exist, or is not here when offline."""

    exit_code = Exit.NOT_FOUND


class AccessError(DiffpipeError):
    """A repository that needs a token, a licence to be accepted, or a wider token."""

    exit_code = Exit.ACCESS


class CacheError(DiffpipeError):
    """A full disk, a damaged cache entry, or a source that changed or moved since the build."""

    exit_code = Exit.CACHE


class DeviceLost(DiffpipeError):
    """The device failed, and does nothing more for this process: what comes after would fail, too."""

    def __init__(self, reason: str) -> None:
        super().__init__(
            f"the device failed: {reason}",
            "run it again: a batch goes on with --resume; where that fails, too, see the driver's log",
        )


class DrawnTogether(DiffpipeError):
    """A call for several items drew noise that is not each item's own: they are to be made one by one."""

    def __init__(self) -> None:
        super().__init__("this pipeline draws the noise of all items of a call at once", "pass --batch-size 1")


SUSPENDS = 0x20 | 0x80 | 0x200  # CO_GENERATOR, CO_COROUTINE and CO_ASYNC_GENERATOR of Python's code objects
MODULES = os.path.join("torch", "nn", "modules", "module.py")


def let_go(error: BaseException) -> None:
    """Clear the frames that an error and its causes came through, and those that called them if they have ended: they
    hold the tensors of the call that failed as long as the error is kept. Where it came from can still be shown."""
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            frames = [frame for frame, _ in traceback.walk_tb(one.__traceback__)]
            callers = _callers(frames[0]) if frames else []
            _clear([*reversed(callers), *frames])
            waiting += [one.__cause__, one.__context__]


def _callers(frame: FrameType) -> list[FrameType]:
    """The frames that called a frame, the nearest first. Those of generators, which would be closed, are left out."""
    found = []
    while (caller := frame.f_back) is not None:
        frame = caller
        if not frame.f_code.co_flags & SUSPENDS:
            found.append(frame)
    return found


def _clear(frames: Sequence[FrameType]) -> None:
    """Drop the variables of frames, each of which called the next, unless it still runs."""
    ended = set()
    for frame in frames:
        with suppress(RuntimeError):  # it still runs
            frame.clear()
            len(frame.f_locals)  # what locals() returned there is a copy until Python 3.13: looking again empties it
            ended.add(frame)
    for maker, frame in itertools.pairwise(frames):
        if maker in ended and frame in ended:
            _clear_shared(maker, frame)


def _clear_shared(maker: FrameType, frame: FrameType) -> None:
    """Drop what a nested function of torch's modules shares with the one that made and called it (Module._call_impl,
    where a module has hooks): the frame refers to the function, and that to the variables. Functions of others may be
    kept for later calls."""
    if not frame.f_code.co_filename.endswith(MODULES):
        return
    shared = set(maker.f_code.co_cellvars) & set(frame.f_code.co_freevars)
    for function in gc.get_referents(frame) if shared else ():
        if isinstance(function, FunctionType) and function.__code__ is frame.f_code:
            for name, cell in zip(frame.f_code.co_freevars, function.__closure__ or (), strict=True):
                with suppress(ValueError):  # it is empty
                    if name in shared:
                        del cell.cell_contents
