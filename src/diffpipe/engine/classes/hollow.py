"""A model of a class by its settings, without weights: parameters are on the meta device, its size is within bounds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.canonical import JsonValue
from ...core.errors import UsageError
from .lookup import first_line

if TYPE_CHECKING:
    import torch

    from .lookup import ComponentClass

# Of one model or pipeline. The largest that diffusers has by their own settings has 4,821 (Kandinsky 6); a language
# model with 128 experts in each of 48 layers, kept one by one, some 31,000.
MOST_MODULES = 40_000
MODULES, PER_TENSOR = 2_000, 20  # what a model may have beyond that is known by its weights' names: a fifth are layers
MOST_MEMORY = (
    2 * 2**30
)  # bytes that a constructor may take where its parameters take none: tables, and lists of numbers


def hollow(cls: ComponentClass, settings: Mapping[str, JsonValue], tensors: int | None = None) -> torch.nn.Module:
    """A model of diffusers or transformers that has the shapes of its layers and nothing in them.

    `tensors`: how many its weights are, where that is known. Raises UsageError for settings that the class cannot be
    made with, or not within bounds.
    """
    import torch
    import transformers
    from accelerate import init_empty_weights

    with usable(cls, tensors), init_empty_weights(), torch.device("meta"):
        if issubclass(cls, transformers.PreTrainedModel):
            made: torch.nn.Module = cls(cls.config_class.from_dict(dict(settings)))
        else:
            made = cls.from_config(dict(settings))
        if sum(table.numel() * table.itemsize for table in made.buffers()) > MOST_MEMORY:  # once it is loaded
            raise MemoryError
    return made


@contextmanager
def usable(cls: ComponentClass, tensors: int | None = None) -> Iterator[None]:
    """Raises UsageError for whatever a class raises that is made with the settings of somebody's config.json.

    Also for more modules than `tensors` of weights can be, or MOST_MODULES, and for more than MOST_MEMORY.
    """
    most = MOST_MODULES if tensors is None else min(MOST_MODULES, MODULES + PER_TENSOR * tensors)
    try:
        with few_modules(most), little_memory(MOST_MEMORY):
            yield
    except Exception as error:  # constructors take numbers for granted, and fail in any way without
        large = isinstance(error, MemoryError) or "allocate memory" in str(error)
        reason = f"it needs more than {MOST_MEMORY >> 30} GiB without its weights" if large else first_line(error)
        raise UsageError(
            f"the settings of a {cls.__name__} cannot be used: {reason}", "copy or fetch the model again"
        ) from error


@contextmanager
def few_modules(most: int) -> Iterator[None]:
    """Raises ValueError in a constructor that gives modules to more than `most` places."""
    from torch.nn.modules.module import register_module_module_registration_hook

    count = 0

    def counted(*_: object) -> None:
        nonlocal count
        count += 1
        if count > most:
            raise ValueError(f"it would have more than {most} modules")

    hook = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


@contextmanager
def little_memory(most: int) -> Iterator[None]:
    """Have what would take more than `most` bytes fail as it is asked for (Linux; elsewhere nothing)."""
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[5])
    except (ImportError, OSError):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    bound = pages * resource.getpagesize() + most
    within = min(one for one in (bound, soft, hard) if one != resource.RLIM_INFINITY)
    resource.setrlimit(resource.RLIMIT_DATA, (within, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
