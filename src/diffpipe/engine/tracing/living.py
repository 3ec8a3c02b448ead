"""Tensors that have a shape and no memory: their living bytes by stage, and the few values that a run depends on.

A tensor on torch's meta device stands for one on the device that a pipeline would run on. An operation on such tensors
makes others of the right shape and computes nothing. Where a run depends on values (how many tokens a mask covers,
which of a scheduler's steps this is), they are small and come from the host: of tensors up to MOST_KNOWN bytes that
were made of known ones, the values are computed besides. What nobody computed is 1.0 where the host reads it, 0 or
false.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

from ...core.components import Stage
from ..seams.torch_dispatch_seam import Arguments, Keywords, seen_by, tensors_of, with_tensors, written
from .shapes_of_results import Results

if TYPE_CHECKING:
    import torch

    from ..seams.torch_dispatch_seam import Operation

MOST_KNOWN = 1 << 18  # bytes
# Operations whose result has as many elements as values say: they are done on the values, or not at all.
BY_VALUE = frozenset({"nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive", "repeat_interleave"})
INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index"})
RANDOM = frozenset({"nondeterministic_seeded"})


class Living:
    """Bytes of the tensors alive on the meta device, those of `apart` aside; the most by stage and component at work.

    Storages are counted, so views take nothing.
    """

    def __init__(self, apart: Iterable[torch.Tensor] = ()) -> None:
        self.apart: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()
        self.sizes: weakref.WeakKeyDictionary[torch.UntypedStorage, int] = weakref.WeakKeyDictionary()
        self.values: weakref.WeakKeyDictionary[torch.UntypedStorage, torch.UntypedStorage] = weakref.WeakKeyDictionary()
        self.results, self.now = Results(), 0
        self.stage: Stage = "encode"
        self.part = ""
        self.most: dict[tuple[Stage, str], int] = {}
        for tensor in apart:
            self.apart.add(tensor.untyped_storage())

    @contextmanager
    def watching(self) -> Iterator[Living]:
        """Everything that runs within is seen."""
        import torch

        from .fused import fused

        with ExitStack() as stack:
            stack.enter_context(torch.no_grad())
            stack.enter_context(fused())
            stack.enter_context(seen_by(self.run))
            yield self

    # Counting

    def at_work(self, part: str, stage: Stage | None = None) -> None:
        """A component begins, and with it a stage where one is named."""
        self.part, self.stage = part, stage or self.stage

    def note(self, result: object) -> None:
        """Count what an operation made."""
        for tensor in tensors_of(result):
            if tensor.device.type == "meta":
                self._count(tensor.untyped_storage())
        self.most[self.stage, self.part] = max(self.now, self.most.get((self.stage, self.part), 0))

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self.sizes or storage in self.apart or not storage.nbytes():
            return
        self.sizes[storage] = storage.nbytes()
        self.now += storage.nbytes()
        weakref.finalize(storage, self._gone, storage.nbytes()).atexit = False

    def _gone(self, size: int) -> None:
        self.now -= size

    # Operations

    def run(self, operation: Operation, args: Arguments, kwargs: Keywords) -> Any:
        """An operation, done on the meta device wherever one of its tensors is there."""
        import torch

        given = list(tensors_of(args, kwargs))
        name = operation.__name__.partition(".")[0]
        there = any(one.device.type == "meta" for one in given)
        device = kwargs.get("device")
        to_meta = device is not None and torch.device(device).type == "meta"
        if name == "_local_scalar_dense" and there:
            return self._number(given[0])
        if there and device is not None and not to_meta:
            return self._to_host(operation, args, kwargs)
        if there and name == "copy_" and args[0].device.type != "meta":
            known = self.value(args[1])
            return args[0].fill_(_unknown(args[1])) if known is None else args[0].copy_(known)
        if not there and not to_meta:
            return operation(*args, **kwargs)
        if there and (name in INDEXED or name in BY_VALUE):
            args, kwargs = self._placed(args), dict(kwargs)
            if name in BY_VALUE:
                return self._by_value(operation, args, kwargs)
        made = self.results.run(operation, with_tensors(_on_meta, args), with_tensors(_on_meta, kwargs))
        self._know(operation, args, kwargs, made, given)
        self.note(made)
        return made

    def _number(self, tensor: torch.Tensor) -> int | float | bool:
        known = self.value(tensor)
        return _unknown(tensor) if known is None else known.item()

    def _to_host(self, operation: Operation, args: Arguments, kwargs: Keywords) -> torch.Tensor:
        """A copy from the device."""
        import torch

        found: torch.Tensor
        (tensor, *_) = tensors_of(args)
        known = self.value(tensor)
        if known is None:
            found = torch.full(tensor.shape, _unknown(tensor), dtype=kwargs.get("dtype") or tensor.dtype)
        else:
            found = known.to(kwargs.get("dtype") or tensor.dtype, copy=True)
        return found

    def _placed(self, args: Arguments) -> Arguments:
        """Masks among the indices as the places where they are true."""
        import torch

        if len(args) < 2 or not isinstance(args[1], list | tuple):
            return args
        indices: list[Any] = []
        for index in args[1]:
            if isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8):
                known = self.value(index)
                mask = torch.ones(index.shape, dtype=torch.bool) if known is None else known
                indices += mask.nonzero(as_tuple=True)
            else:
                indices.append(index)
        return (args[0], indices, *args[2:])

    def _by_value(self, operation: Operation, args: Arguments, kwargs: Keywords) -> Any:
        """An operation whose result's size is in the values. What is not known is taken for ones."""
        import torch

        def values(tensor: torch.Tensor) -> torch.Tensor:
            known = self.value(tensor)
            return torch.ones(tensor.shape, dtype=tensor.dtype) if known is None else known

        made = operation(*with_tensors(values, args), **with_tensors(values, kwargs))
        return with_tensors(self.lifted, made)

    # Values

    def value(self, tensor: torch.Tensor) -> torch.Tensor | None:
        """A tensor's values on the host, in the same memory as its views'; None where they are not known."""
        import torch

        if tensor.device.type != "meta":
            return tensor
        known = self.values.get(tensor.untyped_storage())
        if known is None:
            return None
        empty = torch.empty(0, dtype=tensor.dtype)
        return empty.set_(known, tensor.storage_offset(), tensor.size(), tensor.stride())

    def lifted(self, tensor: torch.Tensor) -> torch.Tensor:
        """A tensor of the host as one of the device, its values known where they are few."""
        made = _on_meta(tensor)
        self._learn(made, tensor)
        self.note(made)
        return made

    def _learn(self, tensor: torch.Tensor, values: torch.Tensor) -> None:
        import torch

        storage = tensor.untyped_storage()
        if storage.nbytes() <= MOST_KNOWN:
            self.values[storage] = torch.zeros(storage.nbytes(), dtype=torch.uint8).untyped_storage()
            known = self.value(tensor)
            assert known is not None
            known.copy_(values)

    def _know(
        self, operation: Operation, args: Arguments, kwargs: Keywords, made: object, given: list[torch.Tensor]
    ) -> None:
        """Compute the values besides, where those that they come from are known and few."""
        targets = written(operation, args, kwargs)
        known = [self.value(one) for one in given]
        few = all(one is not None and one.untyped_storage().nbytes() <= MOST_KNOWN for one in known)
        results = list(tensors_of(made))
        few = few and all(one.numel() * one.itemsize <= MOST_KNOWN for one in results)
        fresh = [one for one in results if one.untyped_storage() not in self.values]
        if few and (fresh or targets) and _has_values(operation):
            host = dict(kwargs) | ({"device": "cpu"} if "device" in kwargs else {})
            values = operation(*with_tensors(self.value, args), **with_tensors(self.value, host))
            for one, value in zip(results, tensors_of(values), strict=True):
                if one.untyped_storage() not in self.values:
                    self._learn(one, value)
        elif not few:
            for target in targets:
                self.values.pop(target.untyped_storage(), None)


def _unknown(tensor: torch.Tensor) -> float | int | bool:
    """What stands for each value of a tensor that was not computed: nothing is finite without it, no sum is zero."""
    import torch

    if tensor.is_floating_point() or tensor.is_complex():
        return 1.0
    return False if tensor.dtype == torch.bool else 0


def _has_values(operation: Operation) -> bool:
    """Whether an operation's results follow from what it is given: neither drawn nor left as memory was."""
    import torch

    name = operation.__name__.partition(".")[0]
    return not name.startswith(("empty", "new_empty")) and torch.Tag.nondeterministic_seeded not in operation.tags


def _on_meta(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of the same shape without memory; numbers stay as they are."""
    import torch

    if tensor.device.type == "meta" or tensor.dim() == 0:
        return tensor
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")
