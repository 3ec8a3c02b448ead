"""Whether a model's parts are those that a pipeline class takes, seen from classes and settings before any weight.

diffusers itself only warns of parts of another class, and fails at the first call.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import TYPE_CHECKING, NamedTuple

from ...core.canonical import JsonValue
from ...core.components import DENOISERS, kind_of, text_encoders
from ...core.errors import UsageError
from ..seams.diffusers_seam import constructor_types
from .lookup import component_class, pipeline_class, pipeline_parts

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline

    Pipeline = type[DiffusionPipeline]

Pair = tuple[str, str]  # library and class, as model_index.json has them
Settings = Callable[[str], Mapping[str, JsonValue]]  # a part's config.json by its name, {} where that is not known
# Decoders for the latents of an AutoencoderKL, which its pipelines take in its place.
LIKE_AUTOENCODER_KL = {"AutoencoderTiny", "AsymmetricAutoencoderKL", "ConsistencyDecoderVAE"}
# Settings of a ControlNet that are those of its denoiser: the widths of the text that both are given.
TEXT_WIDTHS = ("cross_attention_dim", "joint_attention_dim", "pooled_projection_dim")
# Which text encoder's hidden size is which setting of the denoiser (pipeline_flux.py, encode_prompt).
FLUX_TEXT = {"joint_attention_dim": "text_encoder_2", "pooled_projection_dim": "text_encoder"}
# Channels of the denoiser's output for each of the latents': 2 x 2 of these are one token of Flux.
CHANNELS = {"UNet2DConditionModel": 1, "SD3Transformer2DModel": 1, "FluxTransformer2DModel": 4}


class Model(NamedTuple):
    """A diffusers folder: what the user calls it, its pipeline class's name, and its parts."""

    label: str
    pipeline: str
    layout: Mapping[str, Pair]


class Replaced(NamedTuple):
    """A part from elsewhere: what the user calls its source, and its class as its own files say it, if they do."""

    label: str
    own_class: Pair | None


def check(pipeline: Pipeline, model: Model, replaced: Mapping[str, Replaced], hint: str) -> dict[str, Pair]:
    """The class that each part is loaded as. `hint`: what fits the model, for errors.

    A part fits by its class, or, of transformers, by its architecture (CLIPModel for CLIPTextModel, which is read from
    it), or where the model's own folder names the same class. Schedulers, tokenizers and processors are not looked at.
    Raises UsageError, naming the first part that does not fit, denoisers first.
    """
    accepted = accepted_classes(pipeline)
    own = _own_class(pipeline, model)
    _check_lacking(pipeline, own, model, replaced, accepted, hint)
    same = accepted_classes(own) if own else {}
    for name in sorted(set(model.layout) & set(accepted) - set(replaced), key=_denoiser_first):
        # What upstream's own pipeline for this model takes for it fits, whatever is written there.
        other = own is not pipeline and same.get(name) != accepted[name]
        if other or not _is_model(model.layout[name]):
            _check_class(pipeline, name, model.label, model.layout[name], accepted[name], hint)
    _check_idle(pipeline, own, model, hint)
    classes = {name: part.own_class for name, part in replaced.items() if part.own_class} | dict(model.layout)
    for name, (label, pair) in replaced.items():
        if pair and pair != model.layout.get(name) and name in accepted and (cls := _known(pair)):
            advice = f"name a source that has one: --component {name}=SOURCE"
            _check_class(pipeline, name, label, pair, accepted[name], advice)
            if name in classes and cls.__name__ in LIKE_AUTOENCODER_KL:
                classes[name] = pair
    return classes


def accepted_classes(pipeline: Pipeline) -> dict[str, tuple[type, ...]]:
    """Part -> the model classes that a pipeline's constructor takes for it; only parts for which it says that."""
    import diffusers
    import transformers

    found = {}
    for name, types in constructor_types(pipeline).items():
        known = [one for one in types if isinstance(one, type)]
        models = [one for one in known if issubclass(one, diffusers.ModelMixin | transformers.PreTrainedModel)]
        if models and len(known) == len(types):
            found[name] = tuple(models)
    return found


def fits(part: type, accepted: Collection[type]) -> bool:
    """Whether a model of this class can take the place of one of the accepted ones."""
    import diffusers
    import transformers

    if any(issubclass(part, one) for one in accepted):
        return True
    if part.__name__ in LIKE_AUTOENCODER_KL:
        return diffusers.AutoencoderKL in accepted
    if not issubclass(part, transformers.PreTrainedModel):
        return False
    return any(_family(part) == _family(one) is not None for one in accepted)


def _family(model: type) -> str | None:
    """The module of a model's configuration, which transformers has one of for each architecture; else None."""
    configuration = getattr(model, "config_class", None)
    return configuration.__module__ if configuration else None


def check_widths(classes: Mapping[str, Pair], replaced: Mapping[str, Replaced], settings: Settings) -> None:
    """Refuse a part of the right class that was made for a model of another size.

    Raises UsageError, naming the setting that differs.
    """
    denoiser = next((name for name in DENOISERS if name in classes), None)
    if denoiser is None or not replaced:
        return
    involved = classes if denoiser in replaced else replaced
    for name, what, has, needed in _widths(classes, denoiser, settings):
        if name in involved and isinstance(has, int) and isinstance(needed, int) and has != needed:
            source = replaced[name].label if name in replaced else "the model"
            raise UsageError(
                f"the {name} of {source} does not fit the {denoiser}: {what.replace('_', ' ')} {has}, not {needed}",
                "choose parts made for the same model",
            )


def _widths(
    classes: Mapping[str, Pair], denoiser: str, settings: Settings
) -> Iterator[tuple[str, str, JsonValue, JsonValue]]:
    """A part, what of it must fit the denoiser, its value, and the denoiser's; None where a setting is not there."""
    kind, wanted = classes[denoiser][1], settings(denoiser)
    if "controlnet" in classes:
        yield from (("controlnet", key, settings("controlnet").get(key), wanted.get(key)) for key in TEXT_WIDTHS)
    encoders = {name: _text_width(settings(name)) for name in text_encoders(classes)}
    if kind == "FluxTransformer2DModel":
        yield from ((name, "text width", encoders.get(name), wanted.get(key)) for key, name in FLUX_TEXT.items())
    known = [width for width in encoders.values() if width]
    if kind == "UNet2DConditionModel" and len(known) == len(encoders) and not wanted.get("encoder_hid_dim"):
        whole = sum(known)  # SDXL joins what its two say
        yield from ((name, "text width", whole, wanted.get("cross_attention_dim")) for name in sorted(encoders))
    made = wanted.get("out_channels") or wanted.get("in_channels")
    if kind in CHANNELS and "vae" in classes and isinstance(made, int):
        yield "vae", "latent channels", settings("vae").get("latent_channels"), made // CHANNELS[kind]


def _text_width(settings: Mapping[str, JsonValue]) -> int | None:
    """The width of a text encoder's output: CLIP and most others say hidden_size, T5 says d_model."""
    width = settings.get("d_model") or settings.get("hidden_size")
    return width if isinstance(width, int) else None


def _own_class(pipeline: Pipeline, model: Model) -> Pipeline | None:
    """The class that a folder names for itself; None where the installed diffusers has no such class."""
    if model.pipeline == pipeline.__name__:
        return pipeline
    try:
        return pipeline_class(model.pipeline)
    except UsageError:
        return None


def _known(pair: Pair) -> type | None:
    try:
        return component_class(*pair)
    except UsageError:
        return None


def _is_model(pair: Pair) -> bool:
    """Whether a class can be a model; of one that is not there, others tell."""
    import diffusers
    import transformers

    found = _known(pair)
    return found is None or issubclass(found, diffusers.ModelMixin | transformers.PreTrainedModel)


def _denoiser_first(name: str) -> tuple[bool, str]:
    return kind_of(name) != "denoiser", name


def _check_lacking(
    pipeline: Pipeline,
    own: Pipeline | None,
    model: Model,
    replaced: Collection[str],
    accepted: Mapping[str, tuple[type, ...]],
    hint: str,
) -> None:
    """Refuse a model whose own class does not know a part that the pipeline works with, though it may be left out.

    An SDXL pipeline does without its first text encoder (the refiner has none), never without the second: a model
    whose class knows no such part is of another family.
    """
    if own is None or own is pipeline:
        return
    parameters = inspect.signature(pipeline.__init__).parameters
    needed = {n for n in accepted if kind_of(n) != "other" and parameters[n].default is inspect.Parameter.empty}
    lacking = needed - set(model.layout) - set(replaced) - pipeline_parts(own)[0]
    if lacking:
        named = ", ".join(sorted(lacking, key=_denoiser_first))
        raise UsageError(f"{pipeline.__name__} needs {named}, which {model.label} does not have", hint)


def _check_idle(pipeline: Pipeline, own: Pipeline | None, model: Model, hint: str) -> None:
    """Refuse a model with a text encoder for which the pipeline has no place: diffusers would leave it out."""
    idle = sorted(text_encoders(set(model.layout) - pipeline_parts(pipeline)[0]))
    if idle and own is not pipeline:
        raise UsageError(f"{pipeline.__name__} has no place for {', '.join(idle)} of {model.label}", hint)


def _check_class(pipeline: Pipeline, name: str, label: str, pair: Pair, accepted: Collection[type], hint: str) -> None:
    if not fits(component_class(*pair), accepted):
        wanted = " or ".join(sorted({one.__name__ for one in accepted if "Multi" not in one.__name__}))
        raise UsageError(f"the {name} of {label} is of class {pair[1]}; {pipeline.__name__} takes {wanted}", hint)
