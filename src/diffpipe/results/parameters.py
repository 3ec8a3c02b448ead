"""What made a file as AUTOMATIC1111's web UI writes settings, and most image tools read them."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..core.canonical import JsonValue
from ..core.components import kind_of
from ..core.source import CHECKPOINTS
from .document import Document, SourceFacts

HASH = 10  # hex digits of a model's SHA-256 that other tools write and look models up by

# How other tools call the samplers of diffusers (its guide "Schedulers", table of A1111 and k-diffusion names).
SAMPLERS = {
    "EulerDiscreteScheduler": "Euler",
    "FlowMatchEulerDiscreteScheduler": "Euler",
    "EulerAncestralDiscreteScheduler": "Euler a",
    "HeunDiscreteScheduler": "Heun",
    "FlowMatchHeunDiscreteScheduler": "Heun",
    "LMSDiscreteScheduler": "LMS",
    "KDPM2DiscreteScheduler": "DPM2",
    "KDPM2AncestralDiscreteScheduler": "DPM2 a",
    "DPMSolverMultistepScheduler": "DPM++ 2M",
    "DPMSolverSDEScheduler": "DPM++ SDE",
    "PNDMScheduler": "PLMS",
    "UniPCMultistepScheduler": "UniPC",
}


def parameters(made: Document) -> str:
    """The prompt, "Negative prompt: …" if there is one, and a line of "Name: value" (its `create_infotext`)."""
    negative = _text_of(made, "negative_prompt")
    lines = [_text_of(made, "prompt"), f"Negative prompt: {negative}" if negative else "", _fields(made)]
    return "\n".join(line for line in lines if line).strip()


def _fields(made: Document) -> str:
    sizes = made.result.sizes
    fields: dict[str, JsonValue] = {
        "Steps": made.arguments.get("num_inference_steps"),
        "Sampler": _sampler(made.components.get("scheduler")),
        "CFG scale": made.arguments.get("guidance_scale"),
        "Seed": made.seed,
        "Size": f"{sizes['width']}x{sizes['height']}" if {"width", "height"} <= sizes.keys() else None,
        "Model hash": _model_hash(made),
        "Model": _model(made),
        "Denoising strength": made.arguments.get("strength"),
        "Version": f"diffpipe {made.versions.get('diffpipe', '')}".strip(),
    }
    return ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items() if value is not None)


def _quoted(value: JsonValue) -> str:
    """A value, in JSON's quotes where it could be taken for more than one (the web UI's `quote`)."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search("[,:\n]", text) else text


def _text_of(made: Document, name: str) -> str:
    """The prompt of this result: of a call with several prompts, each makes as many results as the others."""
    value: JsonValue = made.arguments.get(name) or ""
    if isinstance(value, list):
        place = made.result.index * len(value) // max(made.result.of, 1)
        value = value[min(place, len(value) - 1)]
    return str(value)


def _sampler(scheduler: str | None) -> str | None:
    return SAMPLERS.get(scheduler, scheduler.removesuffix("Scheduler")) if scheduler else None


def _base(made: Document) -> SourceFacts | None:
    """The first source: the model, unless its weights are stored anew and none of it is needed."""
    return next(iter(made.recipe.sources.values()), None)


def _model_hash(made: Document) -> str:
    """Digits of the weights' SHA-256; of the commit, or the pipeline's key, where that is not known."""
    base = _base(made)
    weights = _weights(base) if base else []
    digest = base.files[weights[0]].removeprefix("sha256:") if base and weights else None
    return (digest or (base.commit if base else None) or made.pipeline.key)[:HASH]


def _weights(source: SourceFacts) -> list[str]:
    """The weights of a source whose SHA-256 is known, the denoiser's alone where it is in a folder of its own."""
    known = sorted(p for p, d in source.files.items() if p.endswith(CHECKPOINTS) and d.startswith("sha256:"))
    return [path for path in known if kind_of(path.split("/")[0]) == "denoiser"] or known


def _model(made: Document) -> str | None:
    """The repository, the folder's name, or the name of a single file."""
    base = _base(made)
    if base is None:
        return None
    return Path(next(iter(base.files))).stem if base.single else base.label.rpartition(":")[2]
