"""An adapter's file: the names and shapes of its tensors at once, the tensors one by one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from ...core.canonical import JsonObject
from ...core.errors import UsageError
from ...core.parsing import Fields, Misfit, parse_json
from ...storage.tensor_headers import read_safetensors

if TYPE_CHECKING:
    import torch

LARGEST_METADATA = 10_000_000  # bytes
METADATA = "lora_adapter_metadata"  # of a file by diffusers: the configuration that PEFT had (loaders/lora_base.py)


class _Opened(Protocol):
    """What safetensors opens, of which it says no types."""

    def get_tensor(self, name: str) -> torch.Tensor: ...


class AdapterFile:
    """The tensors of a file. `pickle`: whether pickled ones are read, as far as torch reads them without code.

    `peft`: what PEFT's adapter_config.json, which lay beside it, says of its strength.
    """

    def __init__(self, path: Path, *, pickle: bool = False, peft: JsonObject | None = None) -> None:
        from safetensors import safe_open

        self.path = path
        self._metadata: Mapping[str, _Strength] = {}
        self.metadata: Mapping[str, str] = {}
        self._pickled: dict[str, torch.Tensor] = {}
        if path.suffix != ".safetensors" and pickle:
            self._pickled = _unpickled(path)
            self.shapes = {name: tuple(tensor.shape) for name, tensor in self._pickled.items()}
            return
        header = read_safetensors(path)
        self.shapes = {name: info.shape for name, info in header.tensors.items()}
        self.metadata = header.metadata
        self._opened = cast("_Opened", safe_open(path, framework="pt"))
        try:
            self._metadata = _strengths(self.metadata, peft)
        except Misfit as error:
            raise UsageError(f"what {path.name} says of its strength is damaged: {error}", "fetch it again") from error

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in float32."""
        tensor = self._pickled[name] if self._pickled else self._opened.get_tensor(name)
        return tensor.float()

    def alpha(self, module: str, component: str, rank: int) -> float | None:
        """The alpha that the metadata or PEFT's configuration has for a module; None where they have none.

        PEFT's scale is alpha / rank, or alpha / sqrt(rank) for rank-stabilized adapters; what is returned serves the
        first formula. `component`: where the module belongs; its own name may begin with another (diffusers writes
        "transformer." for whichever denoiser it is).
        """
        if not rank:
            return None
        said = self._metadata.get(module.partition(".")[0]) or self._metadata.get(component) or self._metadata.get("")
        return said.alpha(module, float(rank)) if said else None


@dataclass(frozen=True)
class _Strength:
    """What PEFT's configuration of an adapter says of its strength."""

    default: float | None
    patterns: tuple[tuple[re.Pattern[str], float], ...]
    stabilized: bool

    @classmethod
    def of(cls, fields: Fields) -> _Strength:
        """Raises Misfit."""
        listed = fields.object("alpha_pattern")
        patterns = tuple((_pattern(key), listed.number(key)) for key in listed.names())
        default = fields.number("lora_alpha") if "lora_alpha" in fields.value else None
        return cls(default, patterns, fields.truth("use_rslora", False))

    def alpha(self, module: str, rank: float) -> float:
        own = next((alpha for pattern, alpha in self.patterns if pattern.fullmatch(module)), None)
        alpha = own if own is not None else rank if self.default is None else self.default
        return alpha * rank**0.5 if self.stabilized else alpha


# Of a pattern: a group that repeats what repeats, which can take for ever to find nothing.
ENDLESS = re.compile(r"\)\s*(?:[*+]|\{)")
LONGEST_PATTERN = 1000  # characters


def _pattern(key: str) -> re.Pattern[str]:
    """A key of alpha_pattern, a regular expression for the end of a name (peft/utils/other.py,
    get_pattern_key). Raises Misfit."""
    if len(key) > LONGEST_PATTERN or ENDLESS.search(key):
        raise Misfit("alpha_pattern has a pattern that is too large")
    try:
        return re.compile(rf"(?:.*\.)?(?:{key})")
    except re.error as error:
        raise Misfit(f"alpha_pattern has no pattern: {error}") from error


def _strengths(metadata: Mapping[str, str], peft: JsonObject | None) -> dict[str, _Strength]:
    """What a file's metadata says, by the component that its keys begin with; under "" what PEFT's own file says.

    Raises Misfit for metadata that is damaged.
    """
    if METADATA not in metadata:
        return {"": _Strength.of(Fields(peft, "adapter_config.json"))} if peft else {}
    parts: dict[str, JsonObject] = {}
    for key, value in Fields(parse_json(metadata[METADATA], LARGEST_METADATA, METADATA), METADATA).value.items():
        component, _, name = key.partition(".")
        parts.setdefault(component, {})[name] = value
    return {component: _Strength.of(Fields(found, METADATA)) for component, found in parts.items()}


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a strange pickle leads to
        raise UsageError(f"{path.name} cannot be read: {error}".splitlines()[0], "take a .safetensors file") from error
    inner = read.get("state_dict", read) if isinstance(read, dict) else {}
    return {str(name): tensor for name, tensor in inner.items() if isinstance(tensor, torch.Tensor)}
