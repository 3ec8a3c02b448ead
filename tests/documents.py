"""Documents for tests, as files carry them, and the pipelines that they are of."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from manifests import component_json, manifest

from diffpipe.core.build_spec import BuildSpec
from diffpipe.core.manifest import Manifest
from diffpipe.core.request import Request
from diffpipe.core.source import FileInfo, Role, Source
from diffpipe.results.document import Document, parsed
from diffpipe.results.metadata import About, Run, texts
from diffpipe.sources.key import configuration

SHA = "sha256:" + "ab12" * 16
COMMIT = "c0ffee" + "0" * 34
FLAGS = [
    {"name": "prompt", "kind": "text"}, {"name": "width", "kind": "integer"}, {"name": "image", "kind": "image"},
    {"name": "images", "kind": "image", "many": True}, {"name": "guidance_scale", "kind": "number", "minimum": 0},
]  # fmt: skip
NAMES = ["prompt", "width", "image", "images", "guidance_scale"]
FACTS = {"kind": "image", "format": "png", "index": 0, "of": 1, "width": 64, "height": 32}


def hub(role: str, label: str, *paths: str, **more: Any) -> Source:
    return Source(Role.parse(role), "hub", label, {path: FileInfo(10, SHA) for path in paths}, COMMIT, **more)


def local(role: str, label: str, path: str, kind: Any = "folder", **more: Any) -> Source:
    return Source(Role.parse(role), kind, label, {path: FileInfo(10, SHA)}, **more)


UNET = "unet/diffusion_pytorch_model.safetensors"
BASE = hub("base", "someone/paint", "text_encoder/model.safetensors", UNET, pipeline="StableDiffusionPipeline")


def manifest_of(sources: tuple[Source, ...], spec: BuildSpec | None = None, **more: Any) -> Manifest:
    wanted = spec or BuildSpec("stable-diffusion", "text2image", "someone/paint")
    config = configuration(wanted, "StableDiffusionPipeline", sources)
    return manifest(
        config.json, sources=[source.to_json() for source in sources], flags=FLAGS, arguments=NAMES,
        components=[component_json("scheduler", "PNDMScheduler")], **more,
    )  # fmt: skip


def run_of(manifest: Manifest, **about: Any) -> Run:
    return Run(manifest, About("paint", **about), {"diffpipe": "0.1.0", "torch": "2.13.0"}, "cpu: AVX2")


def made(arguments: Mapping[str, Any], *sources: Source, seed: int = 3, **facts: Any) -> Document:
    """A whole document of a call of a pipeline of these sources."""
    run = run_of(manifest_of(sources or (BASE,)))
    return parsed(texts(run, Request(0, seed, arguments))({**FACTS, **facts})["diffpipe"])
