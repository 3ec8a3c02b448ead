"""Manifests for tests, as `build` writes them, with what a test wants otherwise."""

from __future__ import annotations

from typing import Any

from diffpipe.core.canonical import digest
from diffpipe.core.manifest import Manifest

SECTION = {"kind": "local", "subfolder": "", "files": {}}


def config_json(**changes: Any) -> dict[str, Any]:
    """A configuration of format 1; each change takes the place of a section."""
    return {
        "format": 1,
        "provider": "flux",
        "type": "text2image",
        "pipeline": "FluxPipeline",
        "base": SECTION,
        "config": None,
        "components": {},
        "loras": [],
        "scheduler": {"class": None, "config": {}},
        "dtype": "bfloat16",
        "placement": {"device": "cpu"},
        "trust": {"pickle": False, "remote_code": False},
        **changes,
    }


def manifest_json(config: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    """A manifest of format 1 with the key of its configuration; each change takes the place of a field."""
    config = config or config_json()
    return {
        "format": 1,
        "key": digest(config),
        "provider": config["provider"],
        "type": config["type"],
        "pipeline": config["pipeline"],
        "config": config,
        "sources": [source_json()],
        "components": [],
        "own_class": False,
        "flags": [],
        "arguments": [],
        "kind": "image",
        "fps": None,
        "quirks": [],
        "versions": {},
        **changes,
    }


def source_json(role: str = "base", **changes: Any) -> dict[str, Any]:
    return {"role": role, "kind": "folder", "label": "x", "files": {}, "components": {}, **changes}


def component_json(name: str, class_name: str, **changes: Any) -> dict[str, Any]:
    return {"name": name, "library": "diffusers", "class_name": class_name, "source": "x", **changes}


def manifest(config: dict[str, Any] | None = None, **changes: Any) -> Manifest:
    return Manifest.from_json(manifest_json(config, **changes))
