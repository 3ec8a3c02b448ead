"""Manifest -> pipeline object. Classes come from diffusers and transformers by name, from nowhere else."""

from __future__ import annotations

import importlib
import importlib.util
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...core.build_spec import Placement
from ...core.configuration import Trust
from ...core.errors import CacheError, DiffpipeError, Exit, UsageError
from ...core.manifest import Located, Manifest
from ...core.source import BASE, CONFIG, Role, Source
from ..classes import schedulers
from ..classes.lookup import (
    check_names,
    component_class,
    first_line,
    missing_packages,
    own_pipeline_class,
    pipeline_class,
    pipeline_parts,
)
from ..placement import apply, speed
from ..placement.devices import choose_device, out_of_memory
from ..seams import diffusers_seam
from . import adapters

log = logging.getLogger("diffpipe.engine")

NO_QUIRKS: Mapping[str, str] = {}
RESIDENT = Placement()


def check(
    spec: Mapping[str, Any],
    pipeline: type,
    layout: Mapping[str, tuple[str, str]],
    settings: Mapping[str, Any],
    hint: str,
) -> None:
    """Everything about a build that only diffusers knows, before any weight is fetched.

    `spec`: scheduler, scheduler_config, components, device. `layout`: component -> (library, class) of the folder.
    `settings`: the configuration of its scheduler. `hint`: what fits the model, where it lacks a part.
    Raises UsageError.
    """
    expected, optional = pipeline_parts(pipeline)
    missing = expected - optional - set(layout) - set(spec["components"])
    if missing:
        raise UsageError(
            f"{pipeline.__name__} needs {', '.join(sorted(missing))}, which this model does not have", hint
        )
    check_names(pipeline, spec["components"])
    for name in set(spec["components"]) - set(layout):
        raise UsageError(f"{spec['components'][name]} does not say the class of {name}", "name a folder that has it")
    for library, name in layout.values():
        absent = missing_packages(component_class(library, name))
        if absent:
            raise UsageError(f"{name} needs {' and '.join(absent)}", "install it, in the version that fits your torch")
    shipped = component_class(*layout["scheduler"]) if "scheduler" in layout else None
    schedulers.check(spec, pipeline, shipped, settings)
    choose_device(spec["device"])


def hook(name: str) -> Any:
    """The function that a row of the catalogue names as "module:function"."""
    module, _, function = name.partition(":")
    return getattr(importlib.import_module(module), function)


def load(
    manifest: Manifest,
    located: Located,
    device: str,
    quirks: Mapping[str, str] = NO_QUIRKS,
    placed: Placement = RESIDENT,
    unquantized: Sequence[str] = (),
) -> Any:
    """The pipeline of a manifest, on its device.

    `quirks` and `unquantized`: those of its row in the catalogue. `placed`: how
    it is kept in memory; weights that were stored quantized are taken as they are. Raises CacheError if the weights do
    not make the pipeline, or if the manifest's configuration is not the one that its key stands for.
    """
    import torch

    config, locations = manifest.config, located.sources
    if config.key != manifest.key:  # what is trusted is part of it
        raise CacheError(
            f"the configuration of {manifest.key[:12]} is not the one that it was built with",
            f"diffpipe pipelines remove {manifest.key[:12]}, then build again",
        )
    sources = {source.role: source for source in manifest.sources}
    dtype = getattr(torch, config.dtype)
    own = own_pipeline_class(locations[BASE]) if manifest.own_class and config.trust.remote_code else None
    cls = own or pipeline_class(manifest.pipeline)
    for part in manifest.components:
        diffusers_seam.register_deprecated(part.library)
    try:
        parts = {
            role.name: _load_component(source, locations, manifest, dtype)
            for role, source in sources.items()
            if role.kind == "component"
        }
        parts |= _load_stored(manifest, located)
        pipe = _load_base(cls, sources, locations, parts, dtype, config.trust, config.float32)
        if config.scheduler:
            pipe.scheduler = schedulers.replaced(pipe.scheduler, config.scheduler)
        loras = [(locations[role], source) for role, source in sources.items() if role.kind == "lora"]
        adapters.fuse(pipe, loras, pickle=config.trust.pickle)
        pipe.set_progress_bar_config(disable=True)
        if "load" in quirks:
            hook(quirks["load"])(pipe)
        fresh = replace(placed, quantize="none") if located.weights else placed
        return speed.apply(apply.apply(pipe, fresh, device, unquantized), config.speed)
    except DiffpipeError:
        raise
    except Exception as error:  # the libraries raise whatever a missing file or a strange tensor leads to
        if out_of_memory(error):
            raise DiffpipeError(
                f"{manifest.pipeline} does not fit into the memory of {device}",
                "build it with --memory auto, a smaller --dtype, or for another --device",
                Exit.OUT_OF_MEMORY,
            ) from error
        raise CacheError(
            f"{manifest.pipeline} could not be loaded: {first_line(error)}",
            "the weights do not fit the pipeline, or a package is missing; --traceback shows where",
        ) from error


def _load_stored(manifest: Manifest, located: Located) -> dict[str, Any]:
    """The components whose quantized weights were stored at the build, LoRAs fused; none while they are being made."""
    from . import stored

    if not (located.weights and manifest.stored):
        return {}
    return {
        name: stored.read(component_class(*manifest.classes[name]), located.weights / f"{name}.safetensors")
        for name in manifest.stored.components
    }


def _load_base(
    cls: Any,
    sources: Mapping[Role, Source],
    locations: Mapping[Role, Path],
    parts: dict[str, Any],
    dtype: Any,
    trust: Trust,
    float32: Sequence[str],
) -> Any:
    import torch

    base = sources[BASE]
    if not base.single:
        return cls.from_pretrained(
            locations[BASE],
            dtype={"default": dtype, **dict.fromkeys(float32, torch.float32)} if float32 else dtype,
            variant=base.variant,
            use_safetensors=None if trust.pickle else True,
            local_files_only=True,
            trust_remote_code=trust.remote_code,
            **parts,
        )
    files = locations[BASE], locations[CONFIG]
    return _load_checkpoint(cls, sources[CONFIG], *files, parts, dtype, trust.pickle)


def _load_checkpoint(
    cls: Any, layout: Source, checkpoint: Path, config: Path, parts: dict[str, Any], dtype: Any, pickle: bool
) -> Any:
    """A single file: the whole pipeline where it holds one, else its denoiser within the other source's parts."""
    from ...core.components import DENOISER_ONLY, parts_of_checkpoint
    from ...storage.tensor_headers import read_safetensors

    tensors = read_safetensors(checkpoint).tensors if checkpoint.suffix == ".safetensors" else DENOISER_ONLY
    held = parts_of_checkpoint(tensors, layout.components)
    options = {"dtype": dtype, "local_files_only": True}
    if "vae" in held and any(name.startswith("text_encoder") for name in held):
        missing = {name: None for name in pipeline_parts(cls)[1] if name not in layout.components}
        return cls.from_single_file(str(checkpoint), config=str(config), **missing, **options, **parts)
    for name in held - set(parts):
        part = component_class(*layout.components[name])
        parts[name] = _load_single_file(part, name, checkpoint, config, dtype)
    safe = None if pickle else True
    return cls.from_pretrained(
        config, dtype=dtype, variant=layout.variant, use_safetensors=safe, local_files_only=True, **parts
    )


def _load_single_file(cls: Any, name: str, checkpoint: Path, config: Path, dtype: Any) -> Any:
    """A component from a single file; its settings are those of NAME/ in the folder `config`."""
    if not hasattr(cls, "from_single_file"):
        raise UsageError(f"{cls.__name__} cannot be loaded from a single file", f"give a folder for {name}")
    options: dict[str, Any] = {"dtype": dtype, "local_files_only": True}
    if checkpoint.suffix == ".gguf":
        from diffusers import GGUFQuantizationConfig

        options["quantization_config"] = GGUFQuantizationConfig(compute_dtype=dtype)
    return cls.from_single_file(str(checkpoint), config=str(config), subfolder=name, **options)


def _load_component(source: Source, locations: Mapping[Role, Path], manifest: Manifest, dtype: Any) -> Any:
    """A replacement component, by the class the pipeline's own folder names for it.

    Raises UsageError where its weights are not those of that class: transformers would make up what is missing.
    """
    location = locations[source.role]
    name = source.role.name
    cls = component_class(*manifest.classes[name])
    if source.single:
        return _load_single_file(cls, name, location, locations.get(CONFIG, locations[BASE]), dtype)
    options: dict[str, Any] = {"local_files_only": True}
    if source.subfolder:
        options["subfolder"] = source.subfolder
    if any(path.endswith((".safetensors", ".bin")) for path in source.files):
        options |= {"dtype": dtype, "use_safetensors": None if manifest.config.trust.pickle else True}
        variants = {path for path in source.files if source.variant and f".{source.variant}" in path}
        if variants:
            options["variant"] = source.variant
        component, told = cls.from_pretrained(location, output_loading_info=True, **options)
        if told["missing_keys"]:
            missing = sorted(told["missing_keys"])[0]
            raise UsageError(
                f"the weights of {source.label} are not those of a {cls.__name__}: {missing} is missing",
                f"choose a {cls.__name__} for --component {name}",
            )
        return component
    return cls.from_pretrained(location, **options)
