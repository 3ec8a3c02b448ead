"""Writes a row's file, applies it through diffpipe, and compares every weight of the pipeline with the formula's."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import Module

from diffpipe.core.source import FileInfo, Role, Source
from diffpipe.engine.loading import adapter_fit, adapters

from .formulas import Draw, Formula
from .names import Model, Scheme, Site, Span

Tensors = dict[str, Tensor]
Weights = Mapping[str, Tensor]  # by COMPONENT.PARAMETER

#: How far a float32 weight may be from the formula's, absolutely and as a share of it: sums of some hundred products.
TOLERANCE = 2e-5

#: Family -> the module of tests/ that makes its tiny pipeline, and the function.
FAMILIES = {
    "Stable Diffusion 1": ("checkpoints", "stable_diffusion_pipeline"),
    "SDXL": ("checkpoints_image", "sdxl"),
    "Stable Diffusion 3": ("checkpoints_image", "sd3"),
    "Flux": ("checkpoints", "flux_pipeline"),
    "Flux Control": ("adapter_corpus.pipelines", "flux_control_pipeline"),
    "Flux 2": ("checkpoints_image", "flux2_klein"),
    "Qwen Image": ("checkpoints_image", "qwen"),
    "Z-Image": ("checkpoints_image", "z_image"),
    "Wan 2.1": ("checkpoints_video", "wan_pipeline"),
    "Wan 2.1 image to video": ("checkpoints_video", "wan_image_to_video_pipeline"),
    "Wan 2.2": ("checkpoints_video", "wan22_pipeline"),
    "LTX": ("checkpoints_video", "ltx_pipeline"),
    "LTX 2": ("checkpoints_video", "ltx2_pipeline"),
    "HunyuanVideo": ("adapter_corpus.pipelines", "hunyuan_pipeline"),
}


@dataclass(frozen=True)
class Part:
    """Some layers of a file: what they are called, and by what formula they change the weights."""

    scheme: Scheme
    formula: Formula


@dataclass(frozen=True)
class Row:
    """A file as a tool writes it for a family. `source`: where names and formula stand.

    `metadata`: what its header has. `file`: what it is called. `into`: the denoiser that the user named.
    """

    format: str
    family: str
    parts: tuple[Part, ...]
    source: str
    dtype: torch.dtype = torch.float32
    metadata: Mapping[str, str] = field(default_factory=dict)
    file: str = "adapter.safetensors"
    into: str = ""

    @property
    def name(self) -> str:
        return f"{self.family}: {self.format}"


@dataclass(frozen=True)
class Written:
    """A file's tensors, its layers, and the weights by COMPONENT.PARAMETER that must come of it."""

    tensors: Mapping[str, Tensor]
    sites: Sequence[Site]
    expected: Mapping[str, Tensor]


@dataclass(frozen=True)
class Result:
    """What came of a file. `wrong`: the parameters that differ from what must be; `error`: the largest difference."""

    layers: int
    applied: int
    wrong: Sequence[str]
    error: float


class Tiny:
    """A family's tiny pipeline, which is as new again after each trial."""

    def __init__(self, family: str, dtype: torch.dtype = torch.float32) -> None:
        module, function = FAMILIES[family]
        self.dtype = dtype
        self.make: Callable[[], object] = getattr(importlib.import_module(module), function)
        self.restore()

    def restore(self) -> None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.pipe = self.make().to(self.dtype)  # type: ignore[attr-defined]
        self.components = parts_of(self.pipe)
        self.before = {name: value.clone() for name, value in values(self.components).items()}

    def reset(self) -> None:
        """Give every weight its first value; make the pipeline anew where its parameters are no longer the same."""
        now = values(parts_of(self.pipe))
        if now.keys() != self.before.keys() or any(now[name].shape != old.shape for name, old in self.before.items()):
            self.restore()
            return
        with torch.no_grad():
            for name, value in now.items():
                value.copy_(self.before[name])

    @property
    def model(self) -> Model:
        return Model(self.components, self.before)

    def settings(self, name: str) -> tuple[type, Mapping[str, object]] | None:
        """A component's class and configuration, which is what a build has of it."""
        part = self.components.get(name)
        if part is None:
            return None
        config = part.config  # diffusers has a mapping, transformers an object
        return type(part), config.to_dict() if hasattr(config, "to_dict") else dict(config)


def parts_of(pipe: object) -> dict[str, Module]:
    return {name: part for name, part in pipe.components.items() if isinstance(part, Module)}  # type: ignore[attr-defined]


def values(components: Mapping[str, Module]) -> dict[str, Tensor]:
    return {f"{name}.{key}": value for name, part in components.items() for key, value in part.state_dict().items()}


def write(row: Row, model: Model) -> Written:
    """The tensors of a row's file and the weights that must come of them, in float64."""
    tensors: dict[str, Tensor] = {}
    expected: dict[str, Tensor] = {}
    sites: list[Site] = []
    for part in row.parts:
        for site in part.scheme(model):
            layer = part.formula(Draw(len(sites)), _joined(model, site, ""), _joined_bias(model, site))
            tensors |= {f"{site.key}.{suffix}": tensor for suffix, tensor in layer.tensors.items()}
            _split(model, site, layer.weight, expected, "")
            if layer.bias is not None:
                _split(model, site, layer.bias, expected, ".bias")
            sites.append(site)
    return Written(tensors, sites, expected)


def parameter(model: Model, span: Span, kind: str = "") -> str:
    """The name of a span's weight, or bias; a span of a parameter that is no layer's names it itself."""
    if kind == ".bias":
        return f"{span.module}.bias"
    return f"{span.module}.weight" if f"{span.module}.weight" in model.parameters else span.module


def _joined(model: Model, site: Site, kind: str) -> Tensor:
    """A layer's weight as the file's tool saw it: the rows of its spans, one below the other."""
    found = []
    for span in site.spans:
        whole = model.parameters[parameter(model, span, kind)]
        found.append(whole.double() if span.half is None else whole.double()[span.rows(whole.shape[0])])
    return found[0] if len(found) == 1 else torch.cat(found)


def _joined_bias(model: Model, site: Site) -> Tensor | None:
    there = all(parameter(model, span, ".bias") in model.parameters for span in site.spans)
    return _joined(model, site, ".bias") if there else None


def _split(model: Model, site: Site, value: Tensor, expected: dict[str, Tensor], kind: str) -> None:
    start = 0
    for span in site.spans:
        name = parameter(model, span, kind)
        old = model.parameters[name]
        if len(site.spans) == 1 and value.shape != old.shape:  # a layer that is made wider
            expected[name] = value
            return
        rows = slice(0, old.shape[0]) if span.half is None else span.rows(old.shape[0])
        new = expected.setdefault(name, old.double().clone())
        height = rows.stop - rows.start
        new[rows] = value[start : start + height]
        start += height


def save(row: Row, written: Written, path: Path) -> Path:
    kept = {name: _as(tensor, row.dtype) for name, tensor in written.tensors.items()}
    save_file(kept, path, metadata={"format": "pt", **row.metadata})
    return path


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.to(dtype).contiguous() if tensor.is_floating_point() else tensor


def apply(pipe: object, *files: tuple[Path, str], scale: float = 1.0) -> None:
    """By diffpipe's own entry point, as a build's load does. `files`: each with the denoiser that it is for, or ""."""
    loras = [
        (path, Source(Role.lora(number), "file", path.name, {path.name: FileInfo(0, "")}, scale=scale, into=into))
        for number, (path, into) in enumerate(files)
    ]
    adapters.fuse(pipe, loras)  # type: ignore[arg-type]


def fit(tiny: Tiny, path: Path, into: str = "", partial: bool = False) -> tuple[tuple[int, int] | None, list[str]]:
    """How many of a file's layers a build says that the pipeline takes, of how many, and what else it says."""
    said: list[str] = []
    asked = adapter_fit.Request(path, path.name, partial=partial, denoiser=into)
    return adapter_fit.check_request(type(tiny.pipe), asked, tiny.settings, said.append), said  # type: ignore[arg-type]


def trial(row: Row, tiny: Tiny, folder: Path, scale: float = 1.0, tolerance: float = TOLERANCE) -> Result:
    """Apply a row's file and compare all weights of all components; the pipeline is as new again afterwards.

    `scale`: for formulas whose change grows in proportion to it.
    """
    written = write(row, tiny.model)
    path = save(row, written, folder / row.file)
    try:
        apply(tiny.pipe, (path, row.into), scale=scale)
    except BaseException:
        tiny.restore()  # whatever was left on it
        raise
    result = compare(written, tiny.before, values(parts_of(tiny.pipe)), scale, tolerance)
    tiny.reset()
    return result


def compare(
    written: Written, before: Weights, after: Weights, scale: float = 1.0, tolerance: float = TOLERANCE
) -> Result:
    """`scale`: of changes that grow in proportion to it."""
    wrong, largest = [], 0.0
    for name, old in before.items():
        if name not in after:
            wrong.append(f"{name} (gone)")
            continue
        whole = written.expected.get(name)
        if whole is None:
            wanted = old.double()
        elif whole.shape != old.shape:
            wanted = whole
        else:
            wanted = old.double() + scale * (whole - old.double())
        if after[name].shape != wanted.shape:
            wrong.append(f"{name} (of another shape)")
            continue
        difference = (after[name].double() - wanted).abs()
        if whole is None and bool(difference.any()):
            wrong.append(f"{name} (not in the file)")
        elif bool((difference > tolerance * (1 + wanted.abs())).any()) or not bool(difference.isfinite().all()):
            wrong.append(name)
        largest = max(largest, float(difference.max()) if difference.numel() else 0.0)
    bad = {name.split(" ")[0] for name in wrong}
    model = Model({}, before)
    applied = sum(
        not bad & {parameter(model, s, kind) for s in site.spans for kind in ("", ".bias")} for site in written.sites
    )
    return Result(len(written.sites), applied, wrong, largest)


def header(**entries: object) -> dict[str, str]:
    return {key: value if isinstance(value, str) else json.dumps(value) for key, value in entries.items()}
