"""Single files of weights (.safetensors, .gguf, .ckpt), whose settings are those of a folder's components."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ...core.components import DENOISER_ONLY, parts_of_checkpoint, text_encoders
from ...core.errors import UsageError
from ...core.source import Source
from ...storage.tensor_headers import read_safetensors
from ..classes.lookup import component_class, pipeline_parts
from ..seams import diffusers_files_seam
from . import plain_weights, text_encoder_file

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, GGUFQuantizationConfig

    from ..classes.lookup import ComponentClass, Pipeline

GGUF = ".gguf"
WEIGHTS = (".safetensors", ".bin")  # of a component's folder


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
        if text_encoders(held - parts.keys()):
            return self._whole(cls, held, parts)
        own = {name: self.component(name) for name in held - parts.keys()}
        made: DiffusionPipeline = cls.from_pretrained(
            self.folder,
            dtype=self.dtype,
            variant=self.layout.variant,
            use_safetensors=None if pickle else True,
            local_files_only=True,
            trust_remote_code=False,
            **own,
            **parts,
        )
        return made

    def _whole(self, cls: Pipeline, held: Collection[str], parts: Mapping[str, object]) -> DiffusionPipeline:
        missing = {name: None for name in pipeline_parts(cls)[1] if name not in self.layout.components}
        own = {**missing, **self._from_folder(set(self.layout.components) - set(held) - parts.keys()), **parts}
        plain = None if plain_weights.is_plain(self.file) else plain_weights.read(self.file, self.dtype)
        with diffusers_files_seam.reading(plain):
            made: DiffusionPipeline = cls.from_single_file(
                str(self.file),
                config=str(self.folder),
                dtype=self.dtype,
                local_files_only=True,
                trust_remote_code=False,
                **own,
            )
        return made

    def _from_folder(self, names: Collection[str]) -> dict[str, torch.nn.Module]:
        """The components with weights that the file does not hold, from the folder."""
        weighted = {path.partition("/")[0] for path in self.layout.files if path.endswith(WEIGHTS)}
        return {name: self._own(name) for name in sorted(weighted & set(names))}

    def _own(self, name: str) -> torch.nn.Module:
        varied = self.layout.variant and any(f".{self.layout.variant}" in path for path in self.layout.files)
        pickled = any(path.startswith(f"{name}/") and path.endswith(".bin") for path in self.layout.files)
        made: torch.nn.Module = component_class(*self.layout.components[name]).from_pretrained(
            self.folder,
            use_safetensors=None if pickled else True,
            subfolder=name,
            dtype=self.dtype,
            variant=self.layout.variant if varied else None,
            local_files_only=True,
            trust_remote_code=False,
        )
        return made

    def component(self, name: str) -> torch.nn.Module:
        """One component, of the class that the folder names for it."""
        return load_component(component_class(*self.layout.components[name]), name, self.file, self.folder, self.dtype)


def load_component(cls: ComponentClass, name: str, file: Path, folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """A component from a single file; its settings are those of NAME/ in `folder`.

    Raises UsageError for a class that diffusers cannot load so.
    """
    import transformers

    if issubclass(cls, transformers.PreTrainedModel):
        encoder: torch.nn.Module = text_encoder_file.load(cls, name, file, folder, dtype)
        return encoder
    if not hasattr(cls, "from_single_file"):
        raise UsageError(f"{cls.__name__} cannot be loaded from a single file", f"give a folder for {name}")
    quantized = {"quantization_config": _gguf(dtype)} if file.suffix == GGUF else {}
    source = str(file) if plain_weights.is_plain(file) else plain_weights.read(file, dtype)
    made: torch.nn.Module = cls.from_single_file(
        source,
        config=str(folder),
        subfolder=name,
        dtype=dtype,
        local_files_only=True,
        trust_remote_code=False,
        **quantized,
    )
    return made


def _gguf(dtype: torch.dtype) -> GGUFQuantizationConfig:
    """Weights stay packed as they are in the file; `dtype` computes."""
    from diffusers import GGUFQuantizationConfig

    return GGUFQuantizationConfig(compute_dtype=dtype)
