"""A quantized component as one safetensors file: written tensor by tensor, read back by mapping it.

The file holds all that the module is made of: its parameters, those of quantized layers as their inner tensors, its
buffers (those too that checkpoints leave out, such as rotary tables), and in the header's metadata its configuration.
Every tensor starts at a multiple of 64 bytes, so that it can be used where it is mapped. safetensors allows no holes,
so what fills the gaps is tensors too.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ...core.errors import CacheError, DiffpipeError
from ...core.manifest import QuantizedComponent, StoredComponent
from ...storage.tensor_headers import read_safetensors
from . import quantize

FORMAT = 1  # of the files: raise it when older ones cannot be read any more
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
    """Tensors that are made together, just before they are written: one parameter or buffer of the module."""

    slots: tuple[Slot, ...]
    make: Callable[[], Mapping[str, Any]]


def write(module: Any, path: Path, mode: str, backend: str, exclude: Collection[str] = ()) -> StoredComponent:
    """Quantize a module layer by layer into a file; the module is used up: it must not be called afterwards.

    `mode` "none" stores it as it is. Memory beside the module: a few times its largest layer. Returns what the weights
    folder's summary keeps: bytes, digest, parameters, dtypes, layers (how many were quantized), left (which Linear
    layers were not, and why).
    Raises UsageError as `quantize.backend_for` does.
    """
    wanted, left = ([], {}) if mode == "none" else quantize.choose(module, mode, backend, exclude)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    groups, aliases = _groups(module, {f"{name}.weight" for name in wanted}, mode, backend)
    about = {
        "format": FORMAT,
        "mode": mode,
        "backend": backend if wanted else "",
        "dtype": _name(quantize.compute_dtype(module)),
        "config": _config(module),
        "layers": wanted,
        "aliases": aliases,
    }
    size, digest = write_file(path, groups, {"format": "pt", "diffpipe": json.dumps(about)})
    dtypes = sorted({slot.dtype for group in groups for slot in group.slots})
    return StoredComponent(size, digest, parameters, tuple(dtypes), QuantizedComponent(len(wanted), left))


def _groups(module: Any, quantized: Collection[str], mode: str, backend: str) -> tuple[list[Group], dict[str, str]]:
    """What the file holds, in the module's order, and which parameters are others under a second name."""
    groups: list[Group] = []
    first: dict[int, str] = {}
    aliases: dict[str, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        if first.setdefault(id(parameter), name) != name:
            aliases[name] = first[id(parameter)]
        elif name in quantized:
            like = quantize.template(*parameter.shape, parameter.dtype, mode, backend)
            inner = quantize.inner_tensors(like, name)
            groups.append(Group(slots_of(inner), _quantizing(module, name, mode, backend)))
        else:
            groups.append(Group(slots_of({name: parameter}), _taking(module, name)))
    for name, buffer in module.named_buffers():
        groups.append(Group(slots_of({name: buffer}), lambda name=name, buffer=buffer: {name: buffer}))  # type: ignore[misc]
    return groups, aliases


def _quantizing(module: Any, name: str, mode: str, backend: str) -> Callable[[], Mapping[str, Any]]:
    def make() -> Mapping[str, Any]:
        weight = _take(module, name).detach()
        return quantize.inner_tensors(quantize.quantized(weight, mode, backend), name)

    return make


def _taking(module: Any, name: str) -> Callable[[], Mapping[str, Any]]:
    return lambda: {name: _take(module, name).detach()}


def _take(module: Any, name: str) -> Any:
    """A parameter out of a module, so that its memory goes when it is written."""
    parent, leaf = _owner(module, name)
    return parent._parameters.pop(leaf)


def _owner(module: Any, name: str) -> tuple[Any, str]:
    parent, _, leaf = name.rpartition(".")
    return module.get_submodule(parent), leaf


def slots_of(tensors: Mapping[str, Any]) -> tuple[Slot, ...]:
    return tuple(
        Slot(name, DTYPES[_name(tensor.dtype)], tuple(tensor.shape), tensor.numel() * tensor.element_size())
        for name, tensor in tensors.items()
    )


def _name(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _config(module: Any) -> dict[str, Any]:
    """What the module is made from again: its class's settings, and those of its text generation if it has any."""
    settings: dict[str, Any] = {"config": json.loads(_config_text(module))}
    generation = getattr(module, "generation_config", None)
    return settings | ({"generation": json.loads(generation.to_json_string(use_diff=False))} if generation else {})


def _config_text(module: Any) -> str:
    """The text of config.json, without where it was loaded from."""
    transformers = hasattr(module.config, "to_json_string")  # in diffusers the module itself has it
    text = module.config.to_json_string() if transformers else module.to_json_string()
    kept = {name: value for name, value in json.loads(text).items() if name not in ("_name_or_path", "name_or_path")}
    return json.dumps(kept)


def write_file(path: Path, groups: list[Group], metadata: Mapping[str, str]) -> tuple[int, str]:
    """The file's bytes and digest. The format: 8 bytes with the header's length, the header (JSON), the tensors."""
    header = json.dumps({"__metadata__": metadata, **_places(groups)}, separators=(",", ":")).encode()
    header += b" " * (-(8 + len(header)) % ALIGNMENT)
    hasher = hashlib.sha256()
    with path.open("wb") as stream:

        def put(data: Any) -> None:
            hasher.update(data)
            stream.write(data)

        put(len(header).to_bytes(8, "little") + header)
        for group in groups:
            tensors = group.make()
            for slot in group.slots:
                put(_bytes(tensors[slot.name], slot))
                put(b"\0" * (-slot.size % ALIGNMENT))
            del tensors
        _settle(stream)
        return stream.tell(), "sha256:" + hasher.hexdigest()


def _settle(stream: BinaryIO) -> None:
    stream.flush()
    os.fsync(stream.fileno())


def _places(groups: list[Group]) -> dict[str, Any]:
    """Header entries: each tensor's place after the header, and that of what fills the gap behind it."""
    places: dict[str, Any] = {}
    at = 0
    for slot in (slot for group in groups for slot in group.slots):
        places[slot.name] = {"dtype": slot.dtype, "shape": slot.shape, "data_offsets": [at, at + slot.size]}
        at += slot.size
        if gap := -at % ALIGNMENT:
            places[f"{GAP}{at}"] = {"dtype": "U8", "shape": [gap], "data_offsets": [at, at + gap]}
            at += gap
    return places


def _bytes(tensor: Any, slot: Slot) -> Any:
    import torch

    if (DTYPES[_name(tensor.dtype)], tuple(tensor.shape)) != (slot.dtype, slot.shape):
        raise DiffpipeError(f"{slot.name} came out as {tensor.dtype} {tuple(tensor.shape)}", "report this as a bug")
    return tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()


def about(path: Path) -> dict[str, Any]:
    """What a file says of itself. Raises CacheError if it is cut short, or of another format."""
    told = read_safetensors(path).metadata.get("diffpipe")
    value: dict[str, Any] = json.loads(told) if told else {}
    if value.get("format") != FORMAT:
        raise CacheError(f"the stored weights {path.name} are of another diffpipe", "build the pipeline again")
    return value


def read(cls: Any, path: Path) -> Any:
    """The module of a file that `write` wrote, of the same class: its weights are mapped, none is copied.

    Raises CacheError if the file does not make the module, UsageError if its backend is not installed.
    """
    from safetensors.torch import load_file

    told = about(path)
    if told["backend"]:
        quantize.backend_for(told["backend"], told["mode"])
    module = _skeleton(cls, told)
    tensors = load_file(path)
    for name in told["layers"]:
        weight = f"{name}.weight"
        shape, dtype = _shape(module, weight), _dtype(told["dtype"])
        like = quantize.template(*shape, dtype, told["mode"], told["backend"])
        _check(quantize.inner_tensors(like, weight), tensors, path)
        _set(module, weight, quantize.wrap(like, tensors, weight))
        for inner in quantize.inner_tensors(like, weight):
            del tensors[inner]
    for name, tensor in tensors.items():
        if not name.startswith(GAP):
            _set(module, name, tensor)
    for name, first in told["aliases"].items():
        parent, leaf = _owner(module, name)
        parent._parameters[leaf] = module.get_parameter(first)
    _whole(module, path)
    return module.eval()


def _skeleton(cls: Any, told: Mapping[str, Any]) -> Any:
    """The module without weights, with what its constructor computes, made in the dtype in which it was loaded."""
    from accelerate import init_empty_weights

    settings, dtype = told["config"]["config"], _dtype(told["dtype"])
    with _default_dtype(dtype), init_empty_weights(include_buffers=False):
        if getattr(cls, "config_class", None):
            module = cls._from_config(cls.config_class.from_dict(settings), dtype=dtype)
        else:
            module = cls.from_config(settings)
    if "generation" in told["config"]:
        module.generation_config = type(module.generation_config).from_dict(told["config"]["generation"])
    return module


@contextmanager
def _default_dtype(dtype: Any) -> Iterator[None]:
    """As from_pretrained of both libraries does: constructors compute tables in the default dtype."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _dtype(name: str) -> Any:
    import torch

    return getattr(torch, name)


def _shape(module: Any, name: str) -> tuple[int, int]:
    rows, columns = module.get_parameter(name).shape
    return rows, columns


def _check(expected: Mapping[str, Any], tensors: Mapping[str, Any], path: Path) -> None:
    """Raises CacheError if the installed backend lays a weight out otherwise than the one that wrote the file."""
    for name, like in expected.items():
        found = tensors.get(name)
        if found is None or found.dtype != like.dtype or found.shape != like.shape:
            raise CacheError(
                f"the stored weights {path.name} do not fit the installed packages: {name}",
                "build the pipeline again with --force",
            )


def _set(module: Any, name: str, tensor: Any) -> None:
    """Put a tensor in the place of a parameter or buffer."""
    parent, leaf = _owner(module, name)
    if leaf in parent._buffers:
        parent._buffers[leaf] = tensor
    else:
        parent._parameters[leaf] = quantize.frozen(tensor)


def _whole(module: Any, path: Path) -> None:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    missing = [name for name, tensor in tensors if tensor.device.type == "meta"]
    if missing:
        raise CacheError(f"the stored weights {path.name} lack {missing[0]}", "build the pipeline again with --force")
