"""Where a pipeline's components live, and in which form: what a Placement says, done with the libraries' hooks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from ...core.build_spec import Placement
from ...core.components import Kind, kind_of
from ...core.errors import UsageError
from ...core.quantization import quantized_by_default
from ...memory.sizes import TILE, Sizes
from ..seams import diffusers_seam, torch_seam
from . import devices

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline, ModelMixin
    from transformers import PreTrainedModel

log = logging.getLogger("diffpipe.engine")


def apply(
    pipe: DiffusionPipeline, placement: Placement, device: str, exclude: Collection[str] = ()
) -> DiffusionPipeline:
    """The pipeline, placed. It must come from its files, on the CPU: casting and quantizing cannot be undone.

    `exclude`: layers that quantization leaves alone, as PipelineType.unquantized has them. Components that are
    quantized already stay as they are. A device of "cpu" drives the same hooks as any other. Raises UsageError for
    what the pipeline's class cannot take.
    """
    check(type(pipe), placement, device)
    if placement.quantize != "none":
        _quantize(pipe, placement, exclude)
    if placement.layerwise_casting:
        _cast(pipe)
    switch(pipe, placement)
    return OFFLOADS[placement.cpu_offload](pipe, device)


def check(pipeline: type, placement: Placement, device: str) -> None:
    """Raises UsageError for offloading that a pipeline class has no order of components for, and for a number format
    that the device does not have."""
    float8 = "--layerwise-casting" * placement.layerwise_casting or "--quantize fp8" * (placement.quantize == "fp8")
    if float8 and not devices.has_float8(device):
        raise UsageError(f"{float8}: {device} has no float8", "use --quantize int8, or another --device")
    if placement.cpu_offload == "model" and not ordered(pipeline):
        raise UsageError(f"{pipeline.__name__} does not say in which order to offload", "use --cpu-offload group")


def ordered(pipeline: type) -> bool:
    """Whether a class says in which order its components work, or has a way of its own to offload them."""
    from diffusers import DiffusionPipeline

    own = getattr(pipeline, "enable_model_cpu_offload", None) is not DiffusionPipeline.enable_model_cpu_offload
    return own or getattr(pipeline, "model_cpu_offload_seq", None) is not None


def modules(pipe: DiffusionPipeline, *kinds: Kind) -> Iterator[tuple[str, ModelMixin | PreTrainedModel]]:
    """The pipeline's components that have weights, of these kinds; of every kind if none is named."""
    import torch

    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module) and (not kinds or kind_of(name) in kinds):
            yield name, part


def bytes_on_device(pipe: DiffusionPipeline) -> int:
    """Bytes of the weights and buffers that are not on the CPU now."""
    tensors = (tensor for _, part in modules(pipe) for tensor in (*part.parameters(), *part.buffers()))
    return sum(tensor.nbytes for tensor in tensors if tensor.device.type not in ("cpu", "meta"))


def parts(pipe: DiffusionPipeline) -> tuple[Sizes, ...]:
    """The components as the rules of memory.knobs know them, without sizes."""
    return tuple(
        Sizes(name, type(part).__name__, kind_of(name), quantized=_method(part)) for name, part in modules(pipe)
    )


def _method(part: ModelMixin | PreTrainedModel) -> str:
    """How a component came quantized, "" if it did not."""
    quantizer = getattr(part, "hf_quantizer", None)
    return str(quantizer.quantization_config.quant_method) if quantizer else ""


def _quantize(pipe: DiffusionPipeline, placement: Placement, exclude: Collection[str]) -> None:
    from ..loading import quantize

    taken = placement.quantize_components or quantized_by_default(name for name, _ in modules(pipe))
    for name, part in modules(pipe):
        if name in taken and not _method(part):
            quantize.quantize_module(part, placement.quantize, placement.quantize_backend, _layers_of(name, exclude))


def _layers_of(component: str, exclude: Collection[str]) -> list[str]:
    """The layers of a component that patterns COMPONENT.LAYER name."""
    patterns = (pattern.partition(".") for pattern in exclude)
    return [layer for of, _, layer in patterns if fnmatchcase(component, of)]


def _cast(pipe: DiffusionPipeline) -> None:
    """Store the denoisers' layers in 8 bits. Their own dtype computes, which the rest of the pipeline has, too."""
    import torch

    for _, part in modules(pipe, "denoiser"):
        part.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=part.dtype)


def switch(pipe: DiffusionPipeline, placement: Placement, before: Placement | None = None) -> None:
    """Turn on and off what can be changed at any time: attention slicing, VAE slicing and tiling.

    Only what differs from `before` is touched: some pipelines come with tiling on.
    """
    before = before or Placement()
    if placement.attention_slicing != before.attention_slicing:
        pipe.set_attention_slice("auto" if placement.attention_slicing else None)
    for _, vae in modules(pipe, "decoder"):
        if placement.vae_slicing != before.vae_slicing and hasattr(vae, "use_slicing"):
            vae.use_slicing = placement.vae_slicing
        if placement.vae_tiling != before.vae_tiling and hasattr(vae, "use_tiling"):
            vae.use_tiling = placement.vae_tiling
            _shrink_tiles(vae)


def _shrink_tiles(vae: ModelMixin) -> None:
    """At most TILE pixels to a side: the models' own 1024 save nothing at 1024 x 1024."""
    size = getattr(vae, "tile_sample_min_size", None)
    if isinstance(size, int) and size > TILE:
        vae.tile_latent_min_size = vae.tile_latent_min_size * TILE // size
        vae.tile_sample_min_size = TILE


def _resident(pipe: DiffusionPipeline, device: str) -> DiffusionPipeline:
    return pipe.to(device)


def _model_offload(pipe: DiffusionPipeline, device: str) -> DiffusionPipeline:
    pipe.enable_model_cpu_offload(device=device)
    return pipe


def _sequential_offload(pipe: DiffusionPipeline, device: str) -> DiffusionPipeline:
    """Layer by layer. Accelerate, which does it for plain weights, does not know quanto's: where any are quantized,
    groups of one layer do the same."""
    from ..loading import quantize

    if not any(quantize.is_wrapper(weight) for _, part in modules(pipe) for weight in part.parameters()):
        pipe.enable_sequential_cpu_offload(device=device)
        return pipe
    for _, part in modules(pipe):
        _offload_in_groups(part, device, blocks=False, stream=False)
    return pipe


def _group_offload(pipe: DiffusionPipeline, device: str) -> DiffusionPipeline:
    """Denoisers block by block, other components layer by layer; never to disk, which has given wrong results."""
    streams = devices.has_streams(device)
    for name, part in modules(pipe):
        _offload_in_groups(
            part, device, blocks=kind_of(name) == "denoiser", stream=streams and not _changes_dtype(part)
        )
    return pipe


def _changes_dtype(part: ModelMixin | PreTrainedModel) -> bool:
    """Whether pipelines compute with a component in float32 though its weights are float16 (SDXL's autoencoder).

    What is streamed comes to the device from pinned copies, which have the dtype that the weights had at first.
    """
    import torch

    return part.dtype == torch.float16 and bool(getattr(part.config, "force_upcast", False))


def _offload_in_groups(part: ModelMixin | PreTrainedModel, device: str, *, blocks: bool, stream: bool) -> None:
    """Offload a component by blocks or by layers, unless its class forbids it (some video autoencoders): such a one
    stays on the device."""
    import torch
    from diffusers.hooks import apply_group_offloading

    if stream:
        torch_seam.pin_no_more_than_needed()
    if not diffusers_seam.supports_group_offloading(part):
        part.to(device)
        return
    apply_group_offloading(
        part,
        onload_device=torch.device(device),
        offload_device=torch.device("cpu"),
        offload_type="block_level" if blocks else "leaf_level",
        num_blocks_per_group=1 if blocks else None,
        use_stream=stream,
    )


OFFLOADS: Mapping[str, Callable[[DiffusionPipeline, str], DiffusionPipeline]] = {
    "none": _resident,
    "model": _model_offload,
    "sequential": _sequential_offload,
    "group": _group_offload,
}
