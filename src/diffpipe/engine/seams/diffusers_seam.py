"""What diffpipe uses of diffusers beyond its documentation. Tried with diffusers 0.42.1.

What is read from the text of its pipelines is in diffusers_source_seam, how it is imported in diffusers_import_seam.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, cast, get_args

from .seam import Seam

if TYPE_CHECKING:
    import torch
    from diffusers import DiffusionPipeline, SchedulerMixin

SIGNATURE_TYPES = Seam(
    "diffusers",
    "DiffusionPipeline._get_signature_types",
    buys="a part of another family is refused before anything is fetched",
    without="parts of another family are refused only when the pipeline is loaded, or fail at the first call",
    file="diffusers/pipelines/pipeline_utils.py",
    text="def _get_signature_types(cls)",
)
OPTIONAL_PARTS = Seam(
    "diffusers",
    "DiffusionPipeline._optional_components",
    buys="models are taken that lack a part which the pipeline can do without",
    without="models that lack such a part are refused, unless the constructor has None for it",
    file="diffusers/pipelines/pipeline_utils.py",
    text="_optional_components = []",
)
LORA_PARTS = Seam(
    "diffusers",
    "_lora_loadable_modules",
    buys="a LoRA for another model is refused before anything is fetched; a build stores the parts that LoRAs change",
    without="LoRAs are checked only when they are loaded, and fused anew at each start where nothing is quantized",
    file="diffusers/loaders/lora_pipeline.py",
    text='_lora_loadable_modules = ["transformer", "text_encoder"]',
)
BACKENDS = Seam(
    "diffusers",
    "_backends of the stand-ins for classes whose packages are missing",
    buys="the packages that a class needs are named",
    without="it is only said that the class is not there",
    file="diffusers/utils/dummy_torch_and_scipy_objects.py",
    text='_backends = ["torch", "scipy"]',
)
COMPATIBLES = Seam(
    "diffusers",
    "SchedulerMixin._compatibles",
    buys="which schedulers may take the place of a model's own",
    without="only the model's own scheduler, and those that its class names, are taken",
    file="diffusers/schedulers/scheduling_utils.py",
    text="_compatibles = []",
)
DEPRECATED = Seam(
    "diffusers",
    "pipelines.deprecated",
    buys="models load whose pipeline modules diffusers moved there (Wuerstchen)",
    without="they are refused: diffusers itself cannot load them either",
    file="diffusers/pipelines/deprecated/__init__.py",
    text="",
)
RENAMED = Seam(
    "diffusers",
    "utils.deprecation_utils._TRANSFORMERS_CLASS_REMAPPING",
    buys="models load that name classes of transformers by their earlier names (DPTFeatureExtractor)",
    without="they are refused, but for those that name CLIPFeatureExtractor, which diffusers itself looks up",
    file="diffusers/utils/deprecation_utils.py",
    text="_TRANSFORMERS_CLASS_REMAPPING = {",
)
REPEATED_BLOCKS = Seam(
    "diffusers",
    "ModelMixin._repeated_blocks",
    buys="--compile is refused at the build where a model does not say which blocks repeat",
    without="--compile is refused for every model",
    file="diffusers/models/modeling_utils.py",
    text="_repeated_blocks = []",
)
GROUP_OFFLOADING = Seam(
    "diffusers",
    "ModelMixin._supports_group_offloading",
    buys="with --cpu-offload group, parts that cannot be offloaded stay on the device",
    without="pipelines with such a part cannot be loaded with --cpu-offload group",
    file="diffusers/models/modeling_utils.py",
    text="_supports_group_offloading = True",
)
GROUP_HOOKS = Seam(
    "diffusers",
    'module._diffusers_hook and its hook "group_offloading"',
    buys="what a call left on the device of a pipeline that is offloaded in groups goes from it at once",
    without="after a call that failed a group stays there until the next, and where groups are streamed their buffers",
    file="diffusers/hooks/group_offloading.py",
    text='_GROUP_OFFLOADING = "group_offloading"',
)
ATTENTION = Seam(
    "diffusers",
    "_attention_backend of attention processors",
    buys="--attention-backend is refused at the build for a model that would ignore it",
    without="--attention-backend is refused for every model",
    file="diffusers/models/transformers/transformer_flux.py",
    text="_attention_backend = None",
)
HOOKS = Seam(
    "diffusers",
    "DiffusionPipeline._all_hooks",
    buys="whether a pipeline is offloaded model by model, and so may run calls side by side",
    without="requests of an offloaded pipeline run one after another; a preview's decoder stays on the device",
    file="diffusers/pipelines/pipeline_utils.py",
    text="self._all_hooks = []",
)
NEVER_OFFLOADED = Seam(
    "diffusers",
    "DiffusionPipeline._exclude_from_cpu_offload",
    buys="components that stay on the device, as safety checkers do, are not taken for what a call left there",
    without="they go to the host and back once more for each call under model offload",
    file="diffusers/pipelines/pipeline_utils.py",
    text="_exclude_from_cpu_offload = []",
)
EXECUTION_DEVICE = Seam(
    "diffusers",
    "DiffusionPipeline._execution_device",
    buys="where an offloaded pipeline computes, for previews",
    without="previews of an offloaded pipeline are fitted on the CPU",
    file="diffusers/pipelines/pipeline_utils.py",
    text="def _execution_device(self)",
)
NUM_TIMESTEPS = Seam(
    "diffusers",
    "pipeline._num_timesteps",
    buys="how many steps a call really takes, for progress",
    without="progress counts to num_inference_steps, which strength may shorten",
    file="diffusers/pipelines/flux/pipeline_flux.py",
    text="self._num_timesteps = len(timesteps)",
)
ALPHA_SIGMA = Seam(
    "diffusers",
    "scheduler._sigma_to_alpha_sigma_t",
    buys="previews without noise with the multistep solvers",
    without="their previews are as noisy as their steps",
    file="diffusers/schedulers/scheduling_dpmsolver_multistep.py",
    text="def _sigma_to_alpha_sigma_t(self, sigma",
)
FLOAT32_PARTS = Seam(
    "diffusers",
    "ModelMixin._keep_in_fp32_modules, and PreTrainedModel's two of transformers",
    buys="plan --trace: layers that are loaded in float32 whatever the dtype count twice",
    without="they are traced in the model's dtype",
    file="diffusers/models/modeling_utils.py",
    text="_keep_in_fp32_modules = None",
)
SEAMS = (
    SIGNATURE_TYPES,
    OPTIONAL_PARTS,
    LORA_PARTS,
    BACKENDS,
    COMPATIBLES,
    DEPRECATED,
    RENAMED,
    REPEATED_BLOCKS,
    GROUP_OFFLOADING,
    GROUP_HOOKS,
    ATTENTION,
    HOOKS,
    NEVER_OFFLOADED,
    EXECUTION_DEVICE,
    NUM_TIMESTEPS,
    ALPHA_SIGMA,
    FLOAT32_PARTS,
)

# The attributes that hold a module's hooks, diffusers' and accelerate's.
HOOK_ATTRIBUTES = frozenset({"_diffusers_hook", "_hf_hook", "_all_hooks"})

# What a pipeline notes of its own progress in a call: no part of what it is asked for.
PROGRESS = frozenset({"_num_timesteps", "_current_timestep", "_interrupt"})

# --- Pipeline classes ---


def constructor_types(pipeline: type[DiffusionPipeline]) -> dict[str, tuple[object, ...]]:
    """Part -> what the annotation of a constructor's parameter names, unions taken apart, those of diffusers too."""
    read = getattr(pipeline, "_get_signature_types", dict)
    return {name: tuple(one for part in types for one in get_args(part) or (part,)) for name, types in read().items()}


def optional_parts(pipeline: type[DiffusionPipeline]) -> frozenset[str]:
    """The parts that a pipeline class says it can do without."""
    return frozenset(getattr(pipeline, "_optional_components", ()))


def lora_parts(pipeline: type[DiffusionPipeline]) -> tuple[str, ...]:
    """The parts that a pipeline's LoRAs may change; () for a class that takes none."""
    return tuple(getattr(pipeline, "_lora_loadable_modules", ()))


def register_deprecated(library: str) -> None:
    """Let diffusers find a pipeline module that it moved to pipelines/deprecated, where folders name it as before.

    from_pretrained looks such modules up as attributes of diffusers.pipelines, and as modules of that name.
    """
    import diffusers.pipelines as pipelines

    moved = f"diffusers.pipelines.deprecated.{library}"
    if hasattr(pipelines, library) or not library.isidentifier() or not importlib.util.find_spec(moved):
        return
    module = importlib.import_module(moved)
    setattr(pipelines, library, module)
    sys.modules[f"diffusers.pipelines.{library}"] = module


def register_renamed(name: str, now: str) -> None:
    """Let diffusers find a class of transformers under its earlier name, where folders name it so."""
    from diffusers.utils import deprecation_utils

    known = getattr(deprecation_utils, "_TRANSFORMERS_CLASS_REMAPPING", {})
    known.setdefault(name, {"new_class": now, "transformers_version": (">=", "4.0.0")})


def missing_backends(cls: object) -> list[str]:
    """The packages that diffusers or transformers misses for a class, in whose place it put a stand-in; else []."""
    needed: Iterable[str] = getattr(cls, "_backends", ())
    return [name for name in needed if importlib.util.find_spec(name) is None]


# --- Schedulers and models ---


def compatible_schedulers(scheduler: type[SchedulerMixin]) -> frozenset[str]:
    """The names of the scheduler classes that this one says may take its place."""
    return frozenset(getattr(scheduler, "_compatibles", ()))


def alpha_and_sigma(scheduler: SchedulerMixin, sigma: torch.Tensor) -> tuple[float, float] | None:
    """(a, s) of a sample a * x0 + s * noise at a level of noise; None where samples are not kept at unit variance."""
    if not hasattr(scheduler, "_sigma_to_alpha_sigma_t"):
        return None
    alpha, noise = scheduler._sigma_to_alpha_sigma_t(sigma)
    return float(alpha), float(noise)


def has_repeated_blocks(model: type) -> bool:
    """Whether a model's class says which of its blocks repeat, which `compile_repeated_blocks` needs."""
    return bool(getattr(model, "_repeated_blocks", None))


def supports_group_offloading(model: torch.nn.Module) -> bool:
    """Whether a model may be offloaded in groups of layers; those of other libraries may."""
    return bool(getattr(model, "_supports_group_offloading", True))


def switches_attention(model: torch.nn.Module) -> bool:
    """Whether a model calls attention by way of diffusers, which can choose its kernel, anywhere."""
    processors = (getattr(module, "processor", None) for module in model.modules())
    return any(hasattr(processor, "_attention_backend") for processor in processors)


def offload_groups(model: torch.nn.Module) -> None:
    """Take from the device what a call left of the groups of an offloaded model: all of a group, where it failed; where
    groups are streamed, always their modules' buffers."""
    for module in model.modules():
        registry: Any = getattr(module, "_diffusers_hook", None)
        group = getattr(registry and registry.get_hook("group_offloading"), "group", None)
        if group is None or group.offload_leader is not module:
            continue
        weights = (*group.parameters, *group.buffers, *(one for part in group.modules for one in part.parameters()))
        if any(weight.device != group.offload_device for weight in weights):
            group.offload_()
        for buffer in (buffer for part in group.modules for buffer in part.buffers()):
            buffer.data = buffer.data.to(group.offload_device)


# --- Loaded pipelines ---


def is_offloaded_by_model(pipe: DiffusionPipeline) -> bool:
    """Whether a pipeline's components come to the device one by one."""
    return bool(getattr(pipe, "_all_hooks", None))


def never_offloaded(pipe: DiffusionPipeline) -> frozenset[str]:
    """The components that a pipeline keeps on the device when the others are offloaded model by model."""
    return frozenset(getattr(pipe, "_exclude_from_cpu_offload", ()))


def device_of(pipe: DiffusionPipeline) -> torch.device:
    """Where a pipeline computes; of an offloaded one that is not where its weights lie."""
    return cast("torch.device", getattr(pipe, "_execution_device", None) or pipe.device)


def step_count(pipe: DiffusionPipeline) -> int:
    """The steps of the call that a pipeline is making; 0 where it does not note them."""
    return int(getattr(pipe, "_num_timesteps", 0) or 0)


def set_step_count(pipe: DiffusionPipeline, steps: int) -> None:
    """Have `step_count` return this until the pipeline's next call."""
    pipe._num_timesteps = steps


def call_settings(pipe: DiffusionPipeline) -> dict[str, object]:
    """What a pipeline keeps in itself of the call it is making (guidance scale, CLIP layers to skip), but its progress.

    Everything that begins with an underscore is taken, hooks and the like too.
    """
    return {name: value for name, value in vars(pipe).items() if name.startswith("_") and name not in PROGRESS}


# --- Models ---


def kept_in_float32(model: torch.nn.Module, dtype: str) -> frozenset[str]:
    """The modules that a model's class loads in float32 when the rest is in `dtype`, by any part of their names.

    transformers has one list for float16, and one for bfloat16 too; diffusers has one for all.
    """
    strict = getattr(model, "_keep_in_fp32_modules_strict", None)
    names = getattr(model, "_keep_in_fp32_modules", None) or ()
    if hasattr(type(model), "_keep_in_fp32_modules_strict"):
        names = {*(names if dtype == "float16" else ()), *(strict or ())}
    return frozenset(names) if dtype != "float32" else frozenset()
