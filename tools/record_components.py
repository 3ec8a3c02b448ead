"""Record what the components of well-known models weigh and how much memory their stages hold, without their weights.

    python tools/record_components.py [MODEL ...]  writes src/diffpipe/memory/recorded.json
    python tools/record_components.py --check      exits 1 if the file is not current, or an estimate is wrong

Each model is made from the values of its public configuration (`model_configs.py`), and nothing of it is allocated or
computed. Sizes come from the names and shapes of its tensors by the same code that reads safetensors headers
(`memory.sizes`), and are compared with torch's own modules. The memory that a stage holds is that of a trace of the
real pipeline (`engine.tracing`), at the model's own size and at others: the constants that the estimates are made of.

Beside the constants stands what the traces held at the model's own size, and at another with two samples at once, which
no constant was read off: tests/memory/test_traced.py holds the estimates to both. The check traces the second again,
and FLUX.1-dev's first.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers
from diffusers.hooks._common import _GO_LC_SUPPORTED_PYTORCH_LAYERS
from diffusers.hooks.layerwise_casting import DEFAULT_SKIP_MODULES_PATTERN
from model_configs import KNOWN, MODELS, configs_of, layout_of

from diffpipe.catalog import BUILTIN
from diffpipe.catalog.rows import PipelineType
from diffpipe.core.quantization import left
from diffpipe.core.tracing import Recipe
from diffpipe.engine.classes.lookup import component_class
from diffpipe.engine.tracing.assembly import is_model
from diffpipe.engine.tracing.trace import trace
from diffpipe.memory.estimate import Task, tokens
from diffpipe.memory.loaded_dtypes import kept
from diffpipe.memory.recorded import SIZES
from diffpipe.memory.sizes import Sizes, read_sizes, set_steps

FILE = Path(__file__).resolve().parents[1] / "src/diffpipe/memory/recorded.json"
DTYPE = "bfloat16"
# Names and shapes tell all layers of these models from each other; of the others but for this share of the parameters
# (tables of vectors that are taken for a Linear, layers that casting leaves alone).
EXACT = ("flux-dev", "qwen-image", "sdxl", "sd3.5-large", "wan2.1-14b", "audioldm2")
NEAR = 0.02
CHECKED = ("components", "other", "fewer", "samples")  # what of a model's settings is for this tool alone


def row_of(pipeline: str) -> PipelineType:
    """The catalogue's row for a pipeline class; the demo model is none of those recorded."""
    rows = (row for name, provider in BUILTIN.items() if name != "demo" for row in provider.types)
    return next(row for row in rows if row.pipeline == pipeline)


def record(key: str, model: Mapping[str, Any]) -> dict[str, Any]:
    began, traces = time.perf_counter(), Traces(model)
    parts, configs = [], {}
    for name, (cls, settings) in model["components"].items():
        library = traces.recipe.layout[name][0]
        if not is_model(component_class(library, cls)):
            continue
        module = build(library, cls, settings)
        stored = {id(t): (n, t) for n, t in reversed(module.state_dict(keep_vars=True).items())}  # tied ones once
        own = dict(module.config) if isinstance(module, diffusers.ModelMixin) else dict(settings)
        configs[name] = json.loads(json.dumps(own, default=str))  # as a config.json has it: lists for tuples
        tensors = {n: list(t.shape) for n, t in reversed(stored.values())}
        sizes = read_sizes(name, cls, tensors, configs[name])
        compare(key, sizes, module)
        parts.append(replace(sizes, stored=2 * (sizes.parameters or 0), recorded=True, dtypes=("BF16",)))
    found = [replace(part, **traces.constants(part)) for part in set_steps(parts, configs)]
    print(f"{key}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
    return {**{k: v for k, v in model.items() if k not in CHECKED},
        "components": [part.to_json() for part in found],
        "traced": [traced(task, traces.held(task)) for task in (traces.task, traces.check)]}  # fmt: skip


def traced(task: Task, held: Mapping[tuple[str, str], int]) -> dict[str, Any]:
    """What a trace held, as it is recorded: the sizes, and stage -> component -> bytes."""
    stages: dict[str, dict[str, int]] = {}
    for (stage, name), living in held.items():
        stages.setdefault(stage, {})[name] = living
    return {"width": task.width, "height": task.height, "frames": task.frames, "batch": task.batch, "held": stages}


class Traces:
    """Traces of a model: at its own size, at `other` sizes, and there with fewer frames or two samples."""

    def __init__(self, model: Mapping[str, Any]) -> None:
        self.row = row_of(model["pipeline"])
        self.recipe = Recipe(model["pipeline"], layout_of(model), configs_of(model), DTYPE, self.row.float32)
        sizes = {name: model[name] for name in SIZES if name in model}
        self.task = Task(model["pipeline"], **sizes, dtype=DTYPE)
        self.other = replace(
            self.task, **{"width": sizes["width"] // 2, "height": sizes["height"] // 2, **model.get("other", {})}
        )
        self.fewer = replace(self.other, frames=model.get("fewer", (self.task.frames - 1) // 16 * 8 + 1))
        self.check = replace(self.other, batch=model.get("samples", 2))
        self.known: dict[Task, dict[tuple[str, str], int]] = {}

    def held(self, task: Task) -> dict[tuple[str, str], int]:
        """(stage, component) -> bytes."""
        if task not in self.known:
            self.known[task] = {(one.stage, one.component): one.living for one in trace(self.recipe, task, self.row)}
        return self.known[task]

    def constants(self, part: Sizes) -> dict[str, int]:
        """What an estimate of a component is made of, in elements of its dtype; see Sizes."""
        width = 4 if part.name in self.recipe.float32 else 2
        own = {"denoiser": "denoise", "decoder": "decode"}.get(part.kind)
        keys = [key for key in self.held(self.task) if key[1] == part.name and own in (None, key[0])]
        if not keys:
            return {"live": 0, "besides": 0}
        high, low, few = (
            max(self.held(task)[key] for key in keys) / width for task in (self.task, self.other, self.fewer)
        )
        if part.kind == "denoiser":
            return self.each_token(part, high, low)
        if part.kind != "decoder":
            return {"besides": round(high), "live": 0}
        if part.temporal > 1 and self.task.frames > 1:
            return self.each_frame(low, few)
        pixels = self.task.width * self.task.height - self.other.width * self.other.height
        live = round((high - low) / pixels)
        return {"live": live, "live_video": live, "live_frame": 3} if part.temporal > 1 else {"live": live}

    def each_token(self, part: Sizes, high: float, low: float) -> dict[str, int]:
        many, few, halves = tokens(part, self.task), tokens(part, self.other), self.task.halves
        live = (high - low) / (many - few) / halves if many > few else 0
        return {"live": round(live), "besides": max(0, round(high / halves - live * many))}

    def each_frame(self, more: float, fewer: float) -> dict[str, int]:
        """For each pixel of a video, and of each of its frames besides: it is twice, see `estimate.moving`."""
        pixels, frames = self.other.width * self.other.height, self.task.frames
        each = max(3, round((more - fewer) / pixels / (frames - self.fewer.frames) / 2))
        live = max(1, round(more / pixels - 2 * each * frames))
        return {"live": live, "live_video": live, "live_frame": each}


def build(library: str, name: str, config: Mapping[str, Any]) -> torch.nn.Module:
    """A model on the meta device, its tied weights one."""
    cls: Any = component_class(library, name)
    with torch.device("meta"):
        own = issubclass(cls, transformers.PreTrainedModel)
        made: torch.nn.Module = cls(cls.config_class(**config)) if own else cls(**config)
    return made.eval()


def compare(key: str, sizes: Sizes, module: torch.nn.Module) -> None:
    """What was read from names and shapes against torch's own modules. Raises ValueError where they differ."""
    layers = {id(m.weight): m for n, m in module.named_modules()
        if isinstance(m, torch.nn.Linear)
        and not left(n) and not kept(type(module).__name__, n)}.values()  # fmt: skip
    patterns = (*DEFAULT_SKIP_MODULES_PATTERN, *(getattr(module, "_skip_layerwise_casting_patterns", None) or ()),
        *(getattr(module, "_keep_in_fp32_modules", None) or ()))  # fmt: skip
    cast = {n: m for n, m in module.named_modules() if isinstance(m, _GO_LC_SUPPORTED_PYTORCH_LAYERS)
        and not any(re.search(pattern, n) for pattern in patterns)}  # fmt: skip
    true = {
        "parameters": sum(p.numel() for p in module.parameters())
        + sum(b.numel() for n, b in module.named_buffers() if n in module.state_dict()),
        "linear": sum(layer.weight.numel() for layer in layers),
        "rows": sum(layer.out_features for layer in layers),
        "cast": sum(p.numel() for m in cast.values() for p in m.parameters(recurse=False)),
    }
    checked = true if sizes.kind == "denoiser" else {k: v for k, v in true.items() if k != "cast"}
    slack = 0 if key in EXACT else NEAR * true["parameters"]
    wrong = {n: (getattr(sizes, n), value) for n, value in checked.items() if abs(getattr(sizes, n) - value) > slack}
    known = KNOWN.get((key, sizes.name))
    if wrong or (known and abs(true["parameters"] / known - 1) > 0.015):
        raise ValueError(f"{key} {sizes.name}: read and true {wrong}; {true['parameters']} parameters, known {known}")


def main() -> None:
    chosen = [name for name in sys.argv[1:] if name in MODELS] or list(MODELS)
    if "--check" in sys.argv[1:]:
        known = json.loads(FILE.read_text("utf-8"))
        for name in chosen:
            traces = Traces(MODELS[name])
            again = [(1, traces.check), *([(0, traces.task)] if name == "flux-dev" else [])]
            if any(known[name]["traced"][n] != traced(task, traces.held(task)) for n, task in again):
                sys.exit(f"recorded.json is not current: {name}\n  run: python tools/record_components.py")
        return
    tables = {} if chosen == list(MODELS) else json.loads(FILE.read_text("utf-8"))
    for name in chosen:
        tables[name] = record(name, MODELS[name])
    text = json.dumps({name: tables[name] for name in MODELS if name in tables}, indent=1) + "\n"
    FILE.write_text(text, "utf-8", newline="\n")


if __name__ == "__main__":
    main()
