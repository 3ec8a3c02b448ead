"""Single files of weights (.safetensors, .gguf, .ckpt), whose settings are those of a folder's components."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.components import DENOISER_ONLY, parts_of_checkpoint, text_encoders
from ...core.errors import UsageError
from ...core.source import Source
from ...storage.tensor_headers import read_safetensors
from ..classes.lookup import component_class, pipeline_parts

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, GGUFQuantizationConfig

    from ..classes.lookup import ComponentClass, Pipeline

GGUF = ".gguf"


@dataclass(frozen=True)
class Checkpoint:
    """A single file, and the folder whose settings its components have. `layout`: that folder as a source."""

    file: Path
    folder: Path
    layout: Source
    dtype: torch.dtype

    def held(self) -> set[str]:
        """The components that the file holds."""
        tensors = read_safetensors(self.file).tensors if self.file.suffix == ".safetensors" else DENOISER_ONLY
        return parts_of_checkpoint(tensors, self.layout.components)

    def pipeline(self, cls: Pipeline, parts: Mapping[str, object], *, pickle: bool) -> DiffusionPipeline:
        """The whole pipeline where the file holds one, else its denoiser within the folder's parts.

        `parts`: components that come from elsewhere.
        """
        held = self.held()
        if "vae" in held and text_encoders(held):
            return self._whole(cls, parts)
        own = {name: self.component(name) for name in held - parts.keys()}
        made: DiffusionPipeline = cls.from_pretrained(
            self.folder,
            dtype=self.dtype,
            variant=self.layout.variant,
            use_safetensors=None if pickle else True,
            local_files_only=True,
            **own,
            **parts,
        )
        return made

    def _whole(self, cls: Pipeline, parts: Mapping[str, object]) -> DiffusionPipeline:
        missing = {name: None for name in pipeline_parts(cls)[1] if name not in self.layout.components}
        made: DiffusionPipeline = cls.from_single_file(
            str(self.file), config=str(self.folder), dtype=self.dtype, local_files_only=True, **{**missing, **parts}
        )
        return made

    def component(self, name: str) -> torch.nn.Module:
        """One component, of the class that the folder names for it."""
        return load_component(component_class(*self.layout.components[name]), name, self.file, self.folder, self.dtype)


def load_component(cls: ComponentClass, name: str, file: Path, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """A component from a single file; its settings are those of NAME/ in `folder`.

    Raises UsageError for a class that diffusers cannot load so.
    """
    if not hasattr(cls, "from_single_file"):
        raise UsageError(f"{cls.__name__} cannot be loaded from a single file", f"give a folder for {name}")
    quantized = {"quantization_config": _gguf(dtype)} if file.suffix == GGUF else {}
    made: torch.nn.Module = cls.from_single_file(
        str(file), config=str(folder), subfolder=name, dtype=dtype, local_files_only=True, **quantized
    )
    return made


def _gguf(dtype: torch.dtype) -> GGUFQuantizationConfig:
    """Weights stay packed as they are in the file; `dtype` computes."""
    from diffusers import GGUFQuantizationConfig

    return GGUFQuantizationConfig(compute_dtype=dtype)
