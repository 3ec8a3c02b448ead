"""What makes a denoiser faster at the price of exactness: compiled blocks, other attention kernels, steps left out."""

from __future__ import annotations

import importlib.util
import inspect
import os
import shutil
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, TypeAlias

from ...core.build_spec import Speed
from ...core.canonical import JsonObject
from ...core.device_names import family
from ...core.errors import UsageError
from ..classes.hollow import hollow
from ..seams import diffusers_seam, torch_seam
from . import apply as placement
from .devices import out_of_memory

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin
    from diffusers.hooks import FirstBlockCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig

    CacheConfig: TypeAlias = FirstBlockCacheConfig | PyramidAttentionBroadcastConfig | TaylorSeerCacheConfig

# core.choices.AttentionBackend -> what diffusers' AttentionBackendName calls it.
BACKENDS: Mapping[str, str] = {
    "native": "native",
    "native-math": "_native_math",
    "native-efficient": "_native_efficient",
    "native-flash": "_native_flash",
    "native-cudnn": "_native_cudnn",
    "flex": "flex",
    "flash": "flash",
    "flash-3": "_flash_3",
    "sage": "sage",
    "xformers": "xformers",
}
COMPILERS = ("gcc", "clang")  # that triton looks for on Linux, to build what starts its kernels
ON_CPU = ("native", "native-math", "native-flash", "flex")


def apply(pipe: DiffusionPipeline, speed: Speed) -> DiffusionPipeline:
    """The pipeline made faster, after it was placed."""
    for _, part in placement.modules(pipe, "denoiser"):
        if speed.attention_backend:
            _set_attention(part, BACKENDS[speed.attention_backend])
        if speed.step_cache:
            part.enable_cache(CACHES[speed.step_cache](pipe))
        if speed.compile:
            part.compile_repeated_blocks()
    return pipe


def _set_attention(part: ModelMixin, backend: str) -> None:
    """Of this component alone: set_attention_backend changes what every other model of the process uses, too."""
    from diffusers.models.attention_dispatch import attention_backend

    with attention_backend("native"):  # as it ends, it brings back what the others use
        part.set_attention_backend(backend)


def _first_block(pipe: DiffusionPipeline) -> FirstBlockCacheConfig:
    from diffusers import FirstBlockCacheConfig

    return FirstBlockCacheConfig()


def _taylorseer(pipe: DiffusionPipeline) -> TaylorSeerCacheConfig:
    from diffusers import TaylorSeerCacheConfig

    return TaylorSeerCacheConfig(taylor_factors_dtype=pipe.dtype)


def _pyramid(pipe: DiffusionPipeline) -> PyramidAttentionBroadcastConfig:
    """The block range that diffusers' guide to caching starts from."""
    from diffusers import PyramidAttentionBroadcastConfig

    return PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: pipe.current_timestep
    )


# By core.choices.StepCache.
CACHES: Mapping[str, Callable[[DiffusionPipeline | ModelMixin], CacheConfig]] = {
    "first-block": _first_block,
    "taylorseer": _taylorseer,
    "pyramid": _pyramid,
}


def check(
    pipeline: type[DiffusionPipeline],
    speed: Speed,
    denoisers: Mapping[str, tuple[type[ModelMixin], JsonObject]],
    device: str,
    dtype: str,
) -> None:
    """Whether a pipeline's denoisers can be made faster so, before any weight is fetched.

    `denoisers`: component -> its class and config.json. `device`: where it will run. `dtype`: that of its weights.
    Raises UsageError.
    """
    if not denoisers:
        raise UsageError(f"{pipeline.__name__} has no transformer or U-Net to make faster", _leave_out(speed))
    for name, (cls, config) in denoisers.items():
        model = hollow(cls, config)
        if speed.compile:
            _check_compile(cls, device)
        if speed.attention_backend:
            _check_attention(name, model, speed.attention_backend, device, dtype)
        if speed.step_cache:
            _check_cache(pipeline, model, speed.step_cache)


def _leave_out(speed: Speed) -> str:
    return "leave out " + " and ".join("--" + name.replace("_", "-") for name in speed.to_json())


def _check_compile(cls: type[ModelMixin], device: str) -> None:
    if not diffusers_seam.has_repeated_blocks(cls):
        raise UsageError(f"--compile: {cls.__name__} does not say which blocks repeat", "leave out --compile")
    if device == "cpu":
        if not torch_seam.has_cpp_compiler():
            raise UsageError("--compile needs a C++ compiler here", "install g++, or leave out --compile")
        return
    triton = torch_seam.needs_triton(device)
    if triton is None:
        raise UsageError(f"--compile: torch compiles nothing for {family(device)}", "leave out --compile")
    if triton and not torch_seam.takes_triton(device):
        raise UsageError(f"--compile: {device} is too old for torch's compiler", "leave out --compile")
    if triton and importlib.util.find_spec("triton") is None:
        raise UsageError("--compile needs triton, which is not installed", "pip install triton, or leave out --compile")
    if triton and sys.platform == "linux" and not (os.environ.get("CC") or any(map(shutil.which, COMPILERS))):
        raise UsageError("--compile needs a C compiler here: triton calls one", "install gcc, or leave out --compile")


def _check_attention(name: str, model: ModelMixin, backend: str, device: str, dtype: str) -> None:
    if not diffusers_seam.switches_attention(model):
        raise UsageError(
            f"--attention-backend: the {name} ({type(model).__name__}) calls torch's attention itself",
            "leave out --attention-backend",
        )
    if device == "cpu" and backend not in ON_CPU:
        raise UsageError(f"--attention-backend {backend} needs a GPU", f"on the CPU: {', '.join(ON_CPU)}")
    try:
        _set_attention(model, BACKENDS[backend])
        if device != "cpu":
            _try_attention(BACKENDS[backend], device, dtype)
    except Exception as error:  # what packages raise that have kernels of their own
        if out_of_memory(error):  # that says nothing of kernels: others use the device now
            return
        where = "here" if device == "cpu" else f"in {dtype} on {device}"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UsageError(f"--attention-backend {backend} cannot be used {where}: {reason}", "use native") from None


def _try_attention(backend: str, device: str, dtype: str) -> None:
    """Compute a little attention on a device: only it knows for which devices, formats and versions of packages a
    backend has kernels. Raises whatever the backend does."""
    import torch
    from diffusers.models.attention_dispatch import AttentionBackendName, dispatch_attention_fn

    tokens = torch.ones(1, 128, 2, 64, dtype=getattr(torch, dtype), device=device)  # batch, tokens, heads, sizes
    with torch.no_grad():
        dispatch_attention_fn(tokens, tokens, tokens, backend=AttentionBackendName(backend)).cpu()


def _check_cache(pipeline: type[DiffusionPipeline], model: ModelMixin, cache: str) -> None:
    """Caching needs a model whose blocks diffusers knows, and a pipeline that says which pass or step it is in."""
    reason = f"{pipeline.__name__} with {type(model).__name__} is not made for it"
    if hasattr(model, "enable_cache") and _says_where_it_is(pipeline, cache):
        try:
            model.enable_cache(CACHES[cache](model))
            return
        except (ValueError, IndexError, AttributeError) as error:
            reason = str(error).strip().splitlines()[0] or reason
    raise UsageError(f"--step-cache {cache}: {reason}", "leave out --step-cache")


def _says_where_it_is(pipeline: type[DiffusionPipeline], cache: str) -> bool:
    if cache == "pyramid":
        return hasattr(pipeline, "current_timestep")
    return "cache_context" in inspect.getsource(pipeline.__call__)
