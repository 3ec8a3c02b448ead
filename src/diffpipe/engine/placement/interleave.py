"""Calls of an offloaded pipeline side by side, so that each component comes to the device once for all of them.

Every call runs in a thread of its own, on a copy of the pipeline that shares the models. Only one thread runs at a
time: it stops where it needs another component than the one that is there, and goes on when all that needed that one
have had it. What a call computes, and from what, is the same as when it is made alone.
"""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeVar

from ...core.errors import let_go
from ..loading import library_logs
from ..seams import accelerate_seam, diffusers_seam
from . import apply, devices, settle
from .devices import RandomStates

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T")


def possible(pipe: DiffusionPipeline) -> bool:
    """Whether calls of a pipeline may be taken apart so: it is offloaded model by model, and its own state is plain."""
    from diffusers import DiffusionPipeline

    nested = any(isinstance(value, DiffusionPipeline) for value in vars(pipe).values())
    cached = any(getattr(part, "is_cache_enabled", False) for _, part in apply.modules(pipe))
    return diffusers_seam.is_offloaded_by_model(pipe) and not nested and not cached


def run(pipe: DiffusionPipeline, works: Sequence[Callable[[DiffusionPipeline], T]]) -> list[T]:
    """What each work makes of its copy of the pipeline, in order. Raises what the first that failed raised."""
    turns: _Turns[T] = _Turns()
    calls = [_Call(work, _copied(pipe)) for work in works]
    with settle.settled(pipe):
        try:
            with accelerate_seam.gated(dict(apply.modules(pipe)), turns.gated):
                try:
                    turns.take(calls)
                finally:
                    for call in calls:
                        call.stop()
                        if call.error is not None:
                            let_go(call.error)  # it holds the call's copy of the pipeline
        finally:
            pipe.maybe_free_model_hooks()
    return [call.result() for call in calls]


def _copied(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """A pipeline with a progress and schedulers of its own, and the same models. It leaves them where they are."""
    from diffusers import SchedulerMixin

    own = copy.copy(pipe)
    vars(own).pop("encode_prompt", None)  # that of prompt_cache, which belongs to the other one
    own.maybe_free_model_hooks = lambda: None
    settle.leave(own)
    for name, part in pipe.components.items():
        if isinstance(part, SchedulerMixin):
            setattr(own, name, copy.deepcopy(part))
    return own


class _Stopped(BaseException):
    """Ends a call that nobody waits for any more."""


class _Call(Generic[T]):
    """A call in a thread of its own, which runs only between `go` and the return of `go`."""

    def __init__(self, work: Callable[[DiffusionPipeline], T], pipe: DiffusionPipeline) -> None:
        self.turn, self.back = threading.Semaphore(0), threading.Semaphore(0)
        self.wants = ""  # the component that it waits for
        self.made: list[T] = []
        self.error: BaseException | None = None
        self.stopped = False
        self.noise: RandomStates | None = None  # from where it stopped
        self.thread = threading.Thread(target=self._run, args=(work, pipe), daemon=True)
        self.thread.start()

    @property
    def over(self) -> bool:
        return bool(self.made) or self.error is not None

    def _run(self, work: Callable[[DiffusionPipeline], T], pipe: DiffusionPipeline) -> None:
        self.turn.acquire()
        try:
            if not self.stopped:
                devices.use(str(diffusers_seam.device_of(pipe)))
                self.made.append(work(pipe))
        except BaseException as error:  # it is raised where the result is asked for
            let_go(error)
            self.error = error
        self.back.release()

    def go(self) -> None:
        """Let it run until it is over or waits for another component. Random numbers that are nobody's go on where it
        was, and the libraries say to it what they said to others."""
        library_logs.hear_again()
        if self.noise:
            self.noise.restore()
        self.turn.release()
        self.back.acquire()
        self.noise = RandomStates.now()

    def wait_for(self, component: str) -> None:
        """Called in its own thread: stop here until it is this component's turn."""
        self.wants = component
        self.back.release()
        self.turn.acquire()
        if self.stopped:
            raise _Stopped

    def stop(self) -> None:
        """End a call that is not over, and wait until it is: one that runs goes on to its next use of a component."""
        self.stopped = True
        self.turn.release()
        self.thread.join()

    def result(self) -> T:
        if self.error is not None:
            raise self.error
        return self.made[0]


class _Turns(Generic[T]):
    """Which component is there, and which call runs."""

    def __init__(self) -> None:
        self.component = ""  # none yet
        self.current: _Call[T] | None = None

    def take(self, calls: Sequence[_Call[T]]) -> None:
        """Let all calls run that wait for the component that is there; then for what the first of the others needs."""
        while waiting := [call for call in calls if not call.over]:
            self.current = next((call for call in waiting if call.wants == self.component), None)
            if self.current is None:
                self.component = waiting[0].wants
            else:
                self.current.go()

    def gated(self, name: str, original: Callable[P, R]) -> Callable[P, R]:
        """A hook's function that makes the call that runs wait until its component's turn."""

        def pre_forward(*args: P.args, **kwargs: P.kwargs) -> R:
            if self.current is not None and self.current.stopped:
                raise _Stopped
            if self.current is not None and name != self.component:
                self.current.wait_for(name)
            return original(*args, **kwargs)

        return pre_forward
