"""An adapter's file: the names and shapes of its tensors at once, the tensors one by one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from ...core.canonical import JsonObject
from ...core.errors import UsageError
from ...core.parsing import Fields, Misfit
from ...storage.tensor_headers import read_safetensors

if TYPE_CHECKING:
    import torch

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
        self._peft = peft or {}
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

    def tensor(self, name: str) -> torch.Tensor:
        """A tensor in float32."""
        tensor = self._pickled[name] if self._pickled else self._opened.get_tensor(name)
        return tensor.float()

    def alpha(self, module: str, component: str, rank: int) -> float | None:
        """The alpha that the metadata or PEFT's configuration has for a module; None where they have none.

        PEFT's scale is alpha / rank, or alpha / sqrt(rank) for rank-stabilized adapters; what is returned serves the
        first formula.
        """
        name = module.removeprefix(f"{component}.")
        settings = self._settings(component)
        if settings is None or not rank:
            return None
        try:
            patterns = settings.object("alpha_pattern").value
            alpha = next((float(str(a)) for p, a in patterns.items() if name == p or name.endswith(f".{p}")), None)
            alpha = settings.number("lora_alpha", float(rank)) if alpha is None else alpha
            return alpha * rank**0.5 if settings.truth("use_rslora", False) else alpha
        except (Misfit, ValueError):
            return None

    def _settings(self, component: str) -> Fields | None:
        """What the metadata says of a component's adapter: keys COMPONENT.NAME."""
        if METADATA not in self.metadata:
            return Fields(self._peft, "adapter_config.json") if self._peft else None
        try:
            read = json.loads(self.metadata[METADATA])
        except ValueError:
            return None
        start = f"{component}."
        found = {key.removeprefix(start): value for key, value in read.items() if key.startswith(start)}
        return Fields(found, METADATA) if found else None


def _unpickled(path: Path) -> dict[str, torch.Tensor]:
    import torch

    try:
        read = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises whatever a strange pickle leads to
        raise UsageError(f"{path.name} cannot be read: {error}".splitlines()[0], "take a .safetensors file") from error
    inner = read.get("state_dict", read) if isinstance(read, dict) else {}
    return {str(name): tensor for name, tensor in inner.items() if isinstance(tensor, torch.Tensor)}
