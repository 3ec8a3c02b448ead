"""Manifest -> pipeline object. Classes come from diffusers and transformers by name, from nowhere else."""

from __future__ import annotations

import importlib
import inspect
import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from ...core.build_spec import SAFETY_CHECKER, Placement
from ...core.errors import CacheError, DiffpipeError, Exit, UsageError
from ...core.manifest import Located, Manifest
from ...core.source import BASE, CONFIG, Source
from ...storage.disk import of_the_system
from ..classes.hollow import MOST_MODULES, few_modules
from ..classes.lookup import component_class, first_line, own_pipeline_class, pipeline_class, unsaid_optional
from ..classes.renamed import renamed
from ..placement import apply, speed
from ..placement.devices import out_of_memory
from ..seams import diffusers_seam, tokenizers_seam, transformers_seam
from . import adapters, chat_templates, checkpoint, chosen_scheduler

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline

    from ..classes.lookup import ComponentClass, Pipeline

log = logging.getLogger("diffpipe.engine")

Look: TypeAlias = "Callable[[DiffusionPipeline], None]"

NO_QUIRKS: Mapping[str, str] = {}
RESIDENT = Placement()
EACH = 10  # models in a pipeline, and what LoRAs and quantizing put in their places
TOKENIZERS = re.compile("Tokenizer|Processor")  # classes that have one
WEIGHTS = (".safetensors", ".bin")  # of a component's folder


def load(
    manifest: Manifest,
    located: Located,
    device: str,
    quirks: Mapping[str, str] = NO_QUIRKS,
    placed: Placement = RESIDENT,
    unquantized: Sequence[str] = (),
    look: Look = lambda pipe: None,
) -> DiffusionPipeline:
    """The pipeline of a manifest, on its device.

    `quirks` and `unquantized`: those of its row in the catalogue. `placed`: how it is kept in memory; weights that were
    stored quantized are taken as they are. `look` is given the pipeline while all of it is still on the CPU. Raises
    CacheError if the weights do not make the pipeline, or if the manifest's configuration is not the one that its key
    stands for.
    """
    check_key(manifest)
    transformers_seam.answer(manifest.config.trust.remote_code)
    if any(TOKENIZERS.search(part.class_name) for part in manifest.components):
        tokenizers_seam.tell()
    try:
        with few_modules(EACH * MOST_MODULES):
            pipe = _Assembly(manifest, located).pipeline()
        chat_templates.bound()
        if "load" in quirks:
            hook(quirks["load"])(pipe)
        look(pipe)
        fresh = replace(placed, quantize="none") if located.weights else placed
        return speed.apply(apply.apply(pipe, fresh, device, unquantized), manifest.config.speed)
    except DiffpipeError:
        raise
    except Exception as error:  # the libraries raise whatever a missing file or a strange tensor leads to
        places = [*located.sources.values(), *filter(None, [located.weights])]
        if gone := next((place for place in places if not place.exists()), None):
            problem = f"{gone} was removed while {manifest.pipeline} was loaded"
            raise CacheError(problem, "build or import it again") from error
        raise _in_words(error, manifest.pipeline, device) from error


def check_key(manifest: Manifest) -> None:
    """Raises CacheError where a key stands for another configuration: what is trusted is part of it."""
    if manifest.config.key != manifest.key:
        short = manifest.key[:12]
        raise CacheError(
            f"the configuration of {short} is not the one that it was built with",
            f"diffpipe pipelines remove {short}, then build again",
        )


def hook(name: str) -> Callable[..., object]:
    """The function that a row of the catalogue names as "module:function"."""
    module, _, function = name.partition(":")
    found: Callable[..., object] = getattr(importlib.import_module(module), function)
    return found


def _in_words(error: Exception, pipeline: str, device: str) -> DiffpipeError:
    if out_of_memory(error):
        return DiffpipeError(
            f"{pipeline} does not fit into the memory of {device}",
            "build it with --memory auto, a smaller --dtype, or for another --device",
            Exit.OUT_OF_MEMORY,
        )
    return of_the_system(error) or CacheError(
        f"{pipeline} could not be loaded: {first_line(error)}",
        "the weights do not fit the pipeline, or a package is missing; --traceback shows where",
    )


class _Assembly:
    """A pipeline from its files, on the CPU: its class, its components, its scheduler, its LoRAs."""

    def __init__(self, manifest: Manifest, located: Located) -> None:
        import torch

        self.manifest, self.located, self.config = manifest, located, manifest.config
        self.sources = {source.role: source for source in manifest.sources}
        self.dtype: torch.dtype = getattr(torch, manifest.config.dtype)
        self.safe = None if manifest.config.trust.pickle else True
        self.trusted = manifest.config.trust.remote_code

    def pipeline(self) -> DiffusionPipeline:
        cls = self.pipeline_class()
        for part in self.manifest.components:
            diffusers_seam.register_deprecated(part.library)
            renamed(part.library, part.class_name)
        absent = unsaid_optional(cls) - self.manifest.classes.keys()
        parts = {**dict.fromkeys(absent), **self.replacements(), **self.stored(), **self.left_out(cls)}
        pipe = self.from_checkpoint(cls, parts) if self.sources[BASE].single else self.from_folder(cls, parts)
        if self.config.scheduler:
            chosen_scheduler.put(pipe, self.config.scheduler)
        adapters.fuse(pipe, self.loras(), pickle=self.config.trust.pickle, partial=self.config.lora_partial)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    def pipeline_class(self) -> Pipeline:
        """The class by its name, or the model's own, where its code is trusted."""
        if self.manifest.own_class and self.config.trust.remote_code:
            own = own_pipeline_class(self.located.sources[BASE])
            if own is not None:
                return own
        return pipeline_class(self.manifest.pipeline)

    def replacements(self) -> dict[str, object]:
        """The components that come from sources of their own."""
        found = (source for role, source in self.sources.items() if role.kind == "component")
        return {source.role.name: self.replacement(source) for source in found}

    def left_out(self, cls: Pipeline) -> dict[str, object]:
        """None for each component that is left out, and that the pipeline need not insist on its safety checker."""
        insists = "requires_safety_checker" in inspect.signature(cls.__init__).parameters
        without: dict[str, object] = dict.fromkeys(self.config.without)
        return {**without, "requires_safety_checker": False} if SAFETY_CHECKER in without and insists else without

    def stored(self) -> dict[str, torch.nn.Module]:
        """The components whose quantized weights were stored at the build, LoRAs fused; none while they are made."""
        from . import stored

        folder, weights = self.located.weights, self.manifest.stored
        if not (folder and weights):
            return {}
        classes = self.manifest.classes
        return {
            name: stored.read(component_class(*classes[name]), folder / f"{name}.safetensors")
            for name in weights.components
        }

    def from_checkpoint(self, cls: Pipeline, parts: Mapping[str, object]) -> DiffusionPipeline:
        lies = self.located.sources
        single = checkpoint.Checkpoint(lies[BASE], lies[CONFIG], self.sources[CONFIG], self.dtype)
        return single.pipeline(cls, parts, pickle=self.config.trust.pickle)

    def from_folder(self, cls: Pipeline, parts: Mapping[str, object]) -> DiffusionPipeline:
        import torch

        wide = dict.fromkeys(self.config.float32, torch.float32)
        made: DiffusionPipeline = cls.from_pretrained(
            self.located.sources[BASE],
            dtype={"default": self.dtype, **wide} if wide else self.dtype,
            variant=self.sources[BASE].variant,
            use_safetensors=self.safe,
            local_files_only=True,
            trust_remote_code=self.trusted,
            **parts,
        )
        return made

    def loras(self) -> list[tuple[Path, Source]]:
        found = (source for role, source in self.sources.items() if role.kind == "lora")
        return [(self.located.sources[source.role], source) for source in found]

    def replacement(self, source: Source) -> object:
        """A component from its own source, by the class the pipeline's own folder names for it."""
        name, lies = source.role.name, self.located.sources
        cls = component_class(*self.manifest.classes[name])
        if source.single:
            folder = lies.get(CONFIG, lies[BASE])
            return checkpoint.load_component(cls, name, lies[source.role], folder, self.dtype)
        place = {"subfolder": source.subfolder} if source.subfolder else {}
        if not any(path.endswith(WEIGHTS) for path in source.files):
            return cls.from_pretrained(
                lies[source.role], local_files_only=True, trust_remote_code=self.trusted, **place
            )
        return self.weighted(cls, source, place)

    def weighted(self, cls: ComponentClass, source: Source, place: Mapping[str, str]) -> torch.nn.Module:
        """A component with weights. Raises UsageError where they are not those of its class: transformers would make
        up what is missing."""
        varied = any(f".{source.variant}" in path for path in source.files) if source.variant else False
        component: torch.nn.Module
        component, info = cls.from_pretrained(
            self.located.sources[source.role],
            output_loading_info=True,
            local_files_only=True,
            trust_remote_code=self.trusted,
            dtype=self.dtype,
            use_safetensors=self.safe,
            **place,
            **({"variant": source.variant} if varied else {}),
        )
        if missing := sorted(info["missing_keys"]):
            raise UsageError(
                f"the weights of {source.label} are not those of a {cls.__name__}: {missing[0]} is missing",
                f"choose a {cls.__name__} for --component {source.role.name}",
            )
        return component
