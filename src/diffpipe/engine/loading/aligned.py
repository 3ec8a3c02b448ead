"""A safetensors file in which every tensor starts at a multiple of 64 bytes, so that it can be used where it is mapped.

safetensors allows no holes, so what fills the gaps is tensors too. The file is written tensor by tensor.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.canonical import JsonObject
from ...core.errors import DiffpipeError
from ...storage.tensor_headers import LENGTH, METADATA

if TYPE_CHECKING:
    import torch

    Tensors = Mapping[str, torch.Tensor]

ALIGNMENT = 64  # bytes: a cache line, and the widest vector registers
GAP = "gap."  # prefix of the tensors that fill gaps
DTYPES = {
    "bool": "BOOL",
    "uint8": "U8",
    "int8": "I8",
    "int16": "I16",
    "int32": "I32",
    "int64": "I64",
    "float8_e4m3fn": "F8_E4M3",
    "float16": "F16",
    "bfloat16": "BF16",
    "float32": "F32",
    "float64": "F64",
    "complex64": "C64",
}  # torch's names -> the format's


@dataclass(frozen=True)
class Slot:
    """A tensor of the file: its name, dtype (as DTYPES says it), shape and bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


@dataclass(frozen=True)
class Group:
    """Tensors that are made together, just before they are written: one parameter or buffer of a module."""

    slots: tuple[Slot, ...]
    make: Callable[[], Tensors]


def slots_of(tensors: Tensors) -> tuple[Slot, ...]:
    """The slots that hold these tensors."""
    return tuple(
        Slot(name, DTYPES[dtype_name(tensor.dtype)], tuple(tensor.shape), tensor.numel() * tensor.element_size())
        for name, tensor in tensors.items()
    )


def dtype_name(dtype: torch.dtype) -> str:
    """torch.bfloat16 -> "bfloat16"."""
    return str(dtype).removeprefix("torch.")


def write_file(path: Path, groups: Sequence[Group], metadata: Mapping[str, str]) -> tuple[int, str]:
    """Write the file, and return its bytes and digest."""
    header = json.dumps({METADATA: metadata, **_places(groups)}, separators=(",", ":")).encode()
    header += b" " * (-(LENGTH + len(header)) % ALIGNMENT)
    hasher = hashlib.sha256()
    with path.open("wb") as stream:

        def put(data: bytes | memoryview) -> None:
            hasher.update(data)
            stream.write(data)

        put(len(header).to_bytes(LENGTH, "little") + header)
        for group in groups:
            tensors = group.make()
            for slot in group.slots:
                put(_bytes(tensors[slot.name], slot))
                put(bytes(-slot.size % ALIGNMENT))
            del tensors
        stream.flush()
        os.fsync(stream.fileno())
        return stream.tell(), "sha256:" + hasher.hexdigest()


def _places(groups: Sequence[Group]) -> JsonObject:
    """Header entries: each tensor's place after the header, and that of what fills the gap behind it."""
    places: JsonObject = {}
    at = 0
    for slot in (slot for group in groups for slot in group.slots):
        places[slot.name] = {"dtype": slot.dtype, "shape": list(slot.shape), "data_offsets": [at, at + slot.size]}
        at += slot.size
        if gap := -at % ALIGNMENT:
            places[f"{GAP}{at}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [at, at + gap]}
            at += gap
    return places


def _bytes(tensor: torch.Tensor, slot: Slot) -> memoryview:
    import torch

    if (DTYPES[dtype_name(tensor.dtype)], tuple(tensor.shape)) != (slot.dtype, slot.shape):
        raise DiffpipeError(f"{slot.name} came out as {tensor.dtype} {tuple(tensor.shape)}", "report this as a bug")
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
