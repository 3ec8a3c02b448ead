"""What a file was made with, as text inside it: a JSON document, and the `parameters` that other image tools read.

The document says all that is needed to make the file again, and nothing of the machine or the person: sources by
repository and commit or by content digest, input files by name and digest. It holds no time, so that the same result
is the same bytes.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.build_spec import Placement
from ..core.canonical import JsonObject, canonical_json, digest
from ..core.components import kind_of
from ..core.errors import DiffpipeError
from ..core.flag import MEDIA_KINDS
from ..core.manifest import Manifest
from ..core.request import Request
from ..core.source import CHECKPOINTS, Source
from ..storage import fetching
from ..storage.digests import identity, sha256

FORMAT = 1  # of the document: raise it when readers of older ones would misread newer ones
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

# What a document must hold to be read: by name a type, the fields of an object, or in a list what each item is.
SHAPE: dict[str, Any] = {
    "format": int,
    "pipeline": dict.fromkeys(("name", "key", "provider", "type", "class"), str),
    "config": dict,
    "sources": [{"role": str, "kind": str, "label": str, "files": dict}],
    "components": dict,
    "arguments": dict,
    "media": dict,
    "seed": int,
    "result": {"kind": str, "format": str, "index": int, "of": int},
    "versions": dict,
    "device": str,
}


@dataclass(frozen=True)
class About:
    """What a run's files say besides pipeline and call: its name, whether media were fitted, items a call at most."""

    name: str
    fit: bool = False
    batch_size: int = 1


@dataclass(frozen=True)
class Run:
    """What all files of a run share. `device` is its kind ("cpu: AVX2", "cuda: NVIDIA L4"), not the machine's name.

    `stepped_down`: how the pipeline was kept for an item that ran out of memory as it was built.
    """

    manifest: Manifest
    about: About
    versions: Mapping[str, str]
    device: str
    stepped_down: Placement | None = None


def texts(run: Run, request: Request) -> Callable[[Mapping[str, Any]], dict[str, str]]:
    """What gives the texts of a request's files, by the keys that the writers of media know.

    It takes the facts of a result: its kind and format, its index among those of the call and how many there are, its
    sizes. Input files are read now, while they are what the call gets. Raises OSError if they cannot be.
    """
    shared = document(run, request)

    def of_result(facts: Mapping[str, Any]) -> dict[str, str]:
        made = {**shared, "result": dict(facts)}
        return {"parameters": parameters(made), "diffpipe": written(made)}

    return of_result


def document(run: Run, request: Request) -> dict[str, Any]:
    """All that makes a request's files, as plain JSON, without what differs among them ("result")."""
    manifest, about = run.manifest, run.about
    media = {flag.name for flag in manifest.flags if flag.kind in MEDIA_KINDS} & request.arguments.keys()
    return {
        "format": FORMAT,
        "tool": "diffpipe",
        "pipeline": {
            "name": about.name,
            "key": manifest.key,
            "provider": manifest.provider,
            "type": manifest.type,
            "class": manifest.pipeline,
        },
        "config": manifest.config.json,
        "sources": [_source(source) for source in manifest.sources],
        "components": {part.name: part.class_name for part in manifest.components},
        "arguments": {name: value for name, value in request.arguments.items() if name not in media},
        "media": {name: _media(request.arguments[name]) for name in sorted(media)},
        "seed": request.seed,
        "fps": request.fps,
        "fit": about.fit,
        "batch_size": about.batch_size,
        "versions": dict(run.versions),
        "device": run.device,
        **({"stepped_down": run.stepped_down.to_json()} if run.stepped_down else {}),
    }


def _source(source: Source) -> JsonObject:
    whole = source.to_json()
    kept = {name: whole[name] for name in ("role", "kind", "label", "commit", "variant", "pipeline") if whole[name]}
    return {**kept, "files": {path: info.digest for path, info in source.files.items()}}


def _media(value: Any) -> Any:
    """A media argument without where it lies: {"file", "digest"}, or a list of those."""
    if isinstance(value, list | tuple):
        return [_media(path) for path in value]
    path = fetching.local(value)
    return {"file": path.name, "digest": media_digest(path)}


def media_digest(path: Path) -> str:
    """The SHA-256 of a file ("sha256:…"), or of the names and digests of a folder's files. Read once while unchanged.

    Raises OSError if it cannot be read.
    """
    if path.is_dir():
        inside = sorted(file for file in path.iterdir() if file.is_file() and not file.name.startswith("."))
        return "sha256:" + digest({file.name: media_digest(file) for file in inside})
    return _digest(path, tuple(identity(path)))


@functools.lru_cache(maxsize=4096)
def _digest(path: Path, _identity: tuple[int, ...]) -> str:
    return sha256(path)


def written(value: Mapping[str, Any]) -> str:
    """A document as text that every format holds: what no XML may hold is escaped as JSON does."""
    text = canonical_json(value)
    return re.sub("[\ud800-\udfff\ufffe\uffff]", lambda found: f"\\u{ord(found[0]):04x}", text)


def parsed(text: str) -> dict[str, Any]:
    """The document that `written` gave.

    Raises DiffpipeError for text that is none, or of a newer version.
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, dict) and isinstance(value.get("format"), int) and value["format"] > FORMAT:
        raise DiffpipeError("its settings were written by a newer diffpipe", "update diffpipe")
    if not _fits(value, SHAPE):
        raise damaged()
    return dict(value)


def sections_of(config: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The sections of a configuration that pin a source, by role."""
    yield "base", config["base"]
    if config["config"]:
        yield "config", config["config"]
    for name, section in config["components"].items():
        yield f"component:{name}", section
    for number, section in enumerate(config["loras"]):
        yield f"lora:{number}", section


def damaged() -> DiffpipeError:
    """The error for a document that says what no diffpipe wrote."""
    return DiffpipeError("its settings are damaged", "use an untouched copy of the file")


def _fits(value: Any, shape: Any) -> bool:
    if isinstance(shape, dict):
        return isinstance(value, dict) and all(name in value and _fits(value[name], shape[name]) for name in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(item, shape[0]) for item in value)
    return isinstance(value, shape) and not isinstance(value, bool)


# The text that other tools read


def parameters(made: Mapping[str, Any]) -> str:
    """A document as AUTOMATIC1111's web UI writes settings, and most image tools read them.

    The prompt, "Negative prompt: …" if there is one, and a line of "Name: value" (its `create_infotext`).
    """
    negative = _text_of(made, "negative_prompt")
    lines = [_text_of(made, "prompt"), f"Negative prompt: {negative}" if negative else "", _fields(made)]
    return "\n".join(line for line in lines if line).strip()


def _fields(made: Mapping[str, Any]) -> str:
    arguments, result = made["arguments"], made["result"]
    scheduler = made["components"].get("scheduler")
    fields = {
        "Steps": arguments.get("num_inference_steps"),
        "Sampler": SAMPLERS.get(scheduler, scheduler.removesuffix("Scheduler")) if scheduler else None,
        "CFG scale": arguments.get("guidance_scale"),
        "Seed": made["seed"],
        "Size": f"{result['width']}x{result['height']}" if "width" in result else None,
        "Model hash": _model_hash(made),
        "Model": _model(made),
        "Denoising strength": arguments.get("strength"),
        "Version": f"diffpipe {made['versions'].get('diffpipe', '')}".strip(),
    }
    return ", ".join(f"{name}: {_quoted(value)}" for name, value in fields.items() if value is not None)


def _quoted(value: Any) -> str:
    """A value, in JSON's quotes where it could be taken for more than one (the web UI's `quote`)."""
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    return json.dumps(text, ensure_ascii=False) if re.search("[,:\n]", text) else text


def _text_of(made: Mapping[str, Any], name: str) -> str:
    """The prompt of this result: of a call with several prompts, each makes as many results as the others."""
    value = made["arguments"].get(name) or ""
    if isinstance(value, list):
        at = made["result"]["index"] * len(value) // max(made["result"]["of"], 1)
        value = value[min(at, len(value) - 1)]
    return str(value)


def _weights(source: Mapping[str, Any]) -> list[str]:
    """The weights of a source whose SHA-256 is known, the denoiser's alone where it is in a folder of its own."""
    known = sorted(p for p, d in source["files"].items() if p.endswith(CHECKPOINTS) and str(d).startswith("sha256:"))
    return [path for path in known if kind_of(path.split("/")[0]) == "denoiser"] or known


def _model_hash(made: Mapping[str, Any]) -> str:
    """Digits of the weights' SHA-256; of the commit, or the pipeline's key, where that is not known."""
    base = made["sources"][0] if made["sources"] else {"files": {}}
    weights = _weights(base)
    whole = base["files"][weights[0]].removeprefix("sha256:") if weights else base.get("commit")
    return str(whole or made["pipeline"]["key"])[:HASH]


def _model(made: Mapping[str, Any]) -> str | None:
    """The repository, the folder's name, or the name of a single file."""
    if not made["sources"]:
        return None
    base = made["sources"][0]
    files = list(base["files"])
    single = len(files) == 1 and files[0].endswith(CHECKPOINTS)
    return Path(files[0]).stem if single else str(base["label"]).rpartition(":")[2]
