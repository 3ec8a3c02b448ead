"""A quantized component as one file: written tensor by tensor, read back by mapping it.

The file (see aligned) holds all that the module is made of: its parameters, those of quantized layers as their inner
tensors, its buffers (those too that checkpoints leave out, such as rotary tables), and in the header's metadata its
configuration.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ...core.canonical import JsonObject
from ...core.choices import Quantize
from ...core.errors import CacheError
from ...core.manifest import QuantizedComponent, StoredComponent
from ...core.parsing import Fields, Misfit, parse_json
from ...storage.tensor_headers import LARGEST_HEADER, read_safetensors
from ..seams import transformers_seam
from . import quantize
from .aligned import DTYPES, GAP, Group, dtype_name, slots_of, write_file

if TYPE_CHECKING:
    import torch
    from diffusers import ModelMixin
    from transformers import PreTrainedModel

    from ..classes.lookup import ComponentClass
    from .aligned import Tensors

    Model: TypeAlias = ModelMixin | PreTrainedModel

FORMAT = 1  # of the files: raise it when older ones cannot be read any more
WHERE_FROM = ("_name_or_path", "name_or_path")  # settings that say where a model was loaded from
NOTED = "diffpipe"  # the entry of the metadata


@dataclass(frozen=True)
class About:
    """What a file says of the module in it.

    `backend`: "" where nothing is quantized. `dtype`: that of most weights, which computes. `config` and `generation`:
    the settings of its class, and of its text generation if it has any. `layers`: the quantized ones. `aliases`:
    parameters that are others under a second name.
    """

    mode: Quantize
    backend: str
    dtype: str
    config: JsonObject
    generation: JsonObject | None
    layers: tuple[str, ...]
    aliases: Mapping[str, str]

    def to_json(self) -> JsonObject:
        generation: JsonObject = {} if self.generation is None else {"generation": self.generation}
        return {
            "format": FORMAT,
            "mode": self.mode,
            "backend": self.backend,
            "dtype": self.dtype,
            "config": {"config": self.config, **generation},
            "layers": list(self.layers),
            "aliases": dict(self.aliases),
        }

    @classmethod
    def from_json(cls, data: Fields) -> About:
        """Raises Misfit for what does not fit."""
        settings, aliases = data.object("config"), data.object("aliases")
        if data.text("dtype") not in DTYPES:
            raise Misfit("dtype is none of torch's")
        if "config" not in settings:
            raise Misfit("config.config is missing")
        return cls(
            mode=data.choice("mode", Quantize),
            backend=data.text("backend", ""),
            dtype=data.text("dtype"),
            config=settings.object("config").value,
            generation=settings.object("generation").value if "generation" in settings else None,
            layers=data.texts("layers"),
            aliases={name: aliases.text(name) for name in aliases.names()},
        )


# --- Writing ---


def write(module: Model, path: Path, mode: Quantize, backend: str, exclude: Collection[str] = ()) -> StoredComponent:
    """Quantize a module layer by layer into a file; the module is used up: it must not be called afterwards.

    `mode` "none" stores it as it is. Memory beside the module: a few times its largest layer. Raises UsageError as
    `quantize.backend_for` does.
    """
    wanted, left = ([], {}) if mode == "none" else quantize.choose(module, mode, backend, exclude)
    parameters = sum(parameter.numel() for parameter in module.parameters())
    groups, aliases = _groups(module, {f"{name}.weight" for name in wanted}, mode, backend)
    noted = About(
        mode=mode,
        backend=backend if wanted else "",
        dtype=dtype_name(quantize.compute_dtype(module)),
        config=_settings(module),
        generation=_generation(module),
        layers=tuple(wanted),
        aliases=aliases,
    )
    size, digest = write_file(path, groups, {"format": "pt", NOTED: json.dumps(noted.to_json())})
    dtypes = sorted({slot.dtype for group in groups for slot in group.slots})
    return StoredComponent(size, digest, parameters, tuple(dtypes), QuantizedComponent(len(wanted), left))


def _groups(
    module: torch.nn.Module, quantized: Collection[str], mode: Quantize, backend: str
) -> tuple[list[Group], dict[str, str]]:
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
        groups.append(Group(slots_of({name: buffer}), partial(dict, {name: buffer})))
    return groups, aliases


def _quantizing(module: torch.nn.Module, name: str, mode: Quantize, backend: str) -> Callable[[], Tensors]:
    def make() -> Tensors:
        weight = _take(module, name).detach()
        return quantize.inner_tensors(quantize.quantized(weight, mode, backend), name)

    return make


def _taking(module: torch.nn.Module, name: str) -> Callable[[], Tensors]:
    return lambda: {name: _take(module, name).detach()}


def _take(module: torch.nn.Module, name: str) -> torch.nn.Parameter:
    """A parameter out of a module, so that its memory goes when it is written."""
    parent, leaf = _owner(module, name)
    parameter = parent.get_parameter(leaf)
    delattr(parent, leaf)
    return parameter


def _owner(module: torch.nn.Module, name: str) -> tuple[torch.nn.Module, str]:
    parent, _, leaf = name.rpartition(".")
    return module.get_submodule(parent), leaf


def _settings(module: Model) -> JsonObject:
    """What config.json says, but where it was loaded from."""
    transformers = hasattr(module.config, "to_json_string")  # in diffusers the module itself has it
    text = module.config.to_json_string() if transformers else module.to_json_string()
    return {name: value for name, value in json.loads(text).items() if name not in WHERE_FROM}


def _generation(module: Model) -> JsonObject | None:
    config = getattr(module, "generation_config", None)
    return json.loads(config.to_json_string(use_diff=False)) if config else None


# --- Reading ---


def read(cls: ComponentClass, path: Path) -> Model:
    """The module of a file that `write` wrote, of the same class: its weights are mapped, none is copied.

    Raises CacheError if the file does not make the module, UsageError if its backend is not installed.
    """
    from safetensors.torch import load_file

    noted = about(path)
    if noted.backend:
        quantize.backend_for(noted.backend, noted.mode)
    module = _skeleton(cls, noted)
    tensors: dict[str, torch.Tensor] = load_file(path)
    for name in noted.layers:
        _wrap_weight(module, f"{name}.weight", tensors, noted, path)
    for name, tensor in tensors.items():
        if not name.startswith(GAP):
            _set(module, name, tensor)
    for name, first in noted.aliases.items():
        parent, leaf = _owner(module, name)
        setattr(parent, leaf, module.get_parameter(first))
    _check_complete(module, path)
    return module.eval()


def about(path: Path) -> About:
    """What a file says of itself. Raises CacheError if it is cut short, or of another format."""
    text = read_safetensors(path).metadata.get(NOTED, "{}")
    try:
        data = Fields(parse_json(text, LARGEST_HEADER))
        if data.value.get("format") != FORMAT:
            raise CacheError(f"the stored weights {path.name} are of another diffpipe", "build the pipeline again")
        return About.from_json(data)
    except Misfit as error:
        raise CacheError(
            f"the stored weights {path.name} are damaged: {error}", "build the pipeline again with --force"
        ) from error


def _skeleton(cls: ComponentClass, noted: About) -> Model:
    """The module without weights, with what its constructor computes, made in the dtype in which it was loaded."""
    from accelerate import init_empty_weights

    dtype = _dtype(noted.dtype)
    module: Model
    with _default_dtype(dtype), init_empty_weights(include_buffers=False):
        if getattr(cls, "config_class", None):
            module = transformers_seam.from_config(cls, noted.config, dtype)
        else:
            module = cls.from_config(noted.config)
    if noted.generation is not None:
        module.generation_config = type(module.generation_config).from_dict(noted.generation)
    return module


@contextmanager
def _default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """As from_pretrained of both libraries does: constructors compute tables in the default dtype."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def _dtype(name: str) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, name)
    return found


def _wrap_weight(
    module: torch.nn.Module, name: str, tensors: dict[str, torch.Tensor], noted: About, path: Path
) -> None:
    """Put a quantized weight in its place; the tensors that it wraps are taken out of `tensors`."""
    rows, columns = module.get_parameter(name).shape
    like = quantize.template(rows, columns, _dtype(noted.dtype), noted.mode, noted.backend)
    expected = quantize.inner_tensors(like, name)
    _check_layout(expected, tensors, path)
    _set(module, name, quantize.wrap(like, tensors, name))
    for inner in expected:
        del tensors[inner]


def _check_layout(expected: Tensors, tensors: Tensors, path: Path) -> None:
    """Raises CacheError if the installed backend lays a weight out otherwise than the one that wrote the file."""
    for name, like in expected.items():
        found = tensors.get(name)
        if found is None or found.dtype != like.dtype or found.shape != like.shape:
            raise CacheError(
                f"the stored weights {path.name} do not fit the installed packages: {name}",
                "build the pipeline again with --force",
            )


def _set(module: torch.nn.Module, name: str, tensor: torch.Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer."""
    parent, leaf = _owner(module, name)
    setattr(parent, leaf, tensor if _is_buffer(parent, leaf) else quantize.frozen(tensor))


def _is_buffer(module: torch.nn.Module, name: str) -> bool:
    try:
        module.get_buffer(name)
    except AttributeError:
        return False
    return True


def _check_complete(module: torch.nn.Module, path: Path) -> None:
    tensors = [*module.named_parameters(), *module.named_buffers()]
    missing = [name for name, tensor in tensors if tensor.device.type == "meta"]
    if missing:
        raise CacheError(f"the stored weights {path.name} lack {missing[0]}", "build the pipeline again with --force")
