"""What a call brought to the device goes from it again: the next one has the room that this one had."""

from __future__ import annotations

import functools
import logging
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeAlias

from ..seams import accelerate_seam, diffusers_seam

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

log = logging.getLogger("diffpipe.engine")

LIBRARIES = ("diffusers", "transformers")  # of whose objects the attributes are looked through
DEEPEST = 3  # lists in lists that are looked through
Container: TypeAlias = "dict[Any, Any] | list[Any]"
MISSING = object()
LEFT = "diffpipe_left"  # an attribute of a pipeline
PLAIN = frozenset({str, int, float, bool, tuple, type(None), types.FunctionType, types.MethodType})


@contextmanager
def settled(pipe: DiffusionPipeline) -> Iterator[None]:
    """Whatever comes of the call inside, the device holds of a pipeline what it held before.

    Components that the pipeline or an error left there are offloaded. Tensors outside of the weights (rotary tables,
    the last samples of a solver), kept by models, their helpers and schedulers, are again what they were before the
    call: nothing, or on the host. Functions that remember what they returned forget it.
    """
    from diffusers import DiffusionPipeline

    ours = isinstance(pipe, DiffusionPipeline)
    if not ours or LEFT in vars(pipe) or diffusers_seam.device_of(pipe).type == "cpu":
        yield
        return
    before = [(container, container.copy()) for container in _containers(pipe)]
    try:
        yield
    except BaseException:
        try:
            _settle(pipe, before)
        except Exception:  # a device that failed for good: what it failed of is to be told
            log.debug("what the call left could not be taken back", exc_info=True)
        raise
    _settle(pipe, before)


def _settle(pipe: DiffusionPipeline, before: list[tuple[Container, Container]]) -> None:
    _offload(pipe)
    for container, kept in before:
        _restore(container, kept)
    kinds: set[Any] = {type(module) for part in _modules(pipe) for module in part.modules()}
    for kind in kinds:
        for forget in _memories(kind):
            forget()


def leave(pipe: DiffusionPipeline) -> None:
    """Have `settled` do nothing for a pipeline that shares its models with others which run at the same time."""
    vars(pipe)[LEFT] = True


def _modules(pipe: DiffusionPipeline) -> list[Any]:
    import torch

    return [part for part in pipe.components.values() if isinstance(part, torch.nn.Module)]


def _offload(pipe: DiffusionPipeline) -> None:
    """Take what a call left of an offloaded pipeline's components from the device."""
    import torch

    if diffusers_seam.is_offloaded_by_model(pipe):
        stay = diffusers_seam.never_offloaded(pipe)
        away = (
            part for name, part in pipe.components.items() if name not in stay and isinstance(part, torch.nn.Module)
        )
        if any(map(accelerate_seam.is_there, away)):
            pipe.maybe_free_model_hooks()
        return
    for part in _modules(pipe):
        diffusers_seam.offload_groups(part)
        accelerate_seam.offload(part)


def _containers(pipe: DiffusionPipeline) -> Iterator[Container]:
    """The attributes of a pipeline, of its models, their modules and its schedulers, and of the plain objects, lists
    and dictionaries that they keep: not those of hooks, nor weights and buffers."""
    import torch
    from diffusers import SchedulerMixin

    plain = set(vars(torch.nn.Module())) - {"_modules"} | diffusers_seam.HOOK_ATTRIBUTES

    def inside(value: Any) -> Container | None:
        if type(value) in PLAIN:
            return None
        if isinstance(value, dict | list):
            return value
        known = isinstance(value, torch.nn.Module) or type(value).__module__.partition(".")[0] in LIBRARIES
        return vars(value) if known and hasattr(value, "__dict__") and not isinstance(value, type) else None

    yield vars(pipe)
    parts = (part for part in pipe.components.values() if isinstance(part, torch.nn.Module | SchedulerMixin))
    waiting: list[Container] = [vars(part) for part in parts]
    seen: set[int] = set()
    while waiting:
        container = waiting.pop()
        if id(container) not in seen:
            seen.add(id(container))
            yield container
            names = container if isinstance(container, dict) else range(len(container))
            found = (inside(container[name]) for name in names if name not in plain)  # type: ignore[index]
            waiting += [one for one in found if one is not None]


def _restore(container: Container, kept: Container) -> None:
    """Put back what was there before, in place of what holds tensors of a device now."""
    if isinstance(container, list):
        if _holds(container) and not _holds(kept):
            container[:] = kept
        return
    for name, value in list(container.items()):
        was = kept.get(name, MISSING)  # type: ignore[union-attr]
        if was is not value and _holds(value):
            if was is MISSING:
                del container[name]
            else:
                container[name] = was


def _holds(value: Any, depth: int = DEEPEST) -> bool:
    """Whether a value is a tensor of a device that is no weight, or holds one."""
    import torch

    if isinstance(value, torch.Tensor):
        return value.device.type not in ("cpu", "meta") and not isinstance(value, torch.nn.Parameter)
    if depth and isinstance(value, list | tuple | dict):
        return any(_holds(one, depth - 1) for one in (value.values() if isinstance(value, dict) else value))
    return False


@functools.cache
def _memories(kind: Any) -> tuple[Callable[[], None], ...]:
    """What makes the functions of a class forget: of those that functools remembers for, or that a library wrapped so.

    Such a memory holds tensors, and the modules that made them, for as long as the process lives.
    """
    functions = [function for base in kind.__mro__ for function in vars(base).values()]
    cells = [cell for function in functions for cell in getattr(function, "__closure__", None) or ()]
    held = [*functions, *(cell.cell_contents for cell in cells if _is_filled(cell))]
    return tuple(one.cache_clear for one in held if callable(getattr(one, "cache_clear", None)))


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # nothing is in it yet
        return False
