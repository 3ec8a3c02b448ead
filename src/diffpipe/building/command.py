"""The command line of a build request: what makes the same pipeline again, from any folder."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ..core.build_spec import BuildSpec, Placement
from ..sources.named import split_denoiser
from ..storage.disk import user_path


def command_of(spec: BuildSpec, name: str) -> tuple[str, ...]:
    """The command that makes the same request again, from any folder."""
    words = ["diffpipe", "build", spec.provider, "--type", spec.type, "--model", absolute(spec.model)]
    options = {
        "--class": spec.pipeline,
        "--revision": spec.revision,
        "--variant": spec.variant,
        "--config": absolute(spec.config) if spec.config else None,
        "--dtype": spec.dtype,
        "--device": None if spec.device == "auto" else spec.device,
        "--scheduler": spec.scheduler,
        "--scheduler-config": _json(spec.scheduler_config),
        **_placement_options(spec.placement),
        "--attention-backend": spec.speed.attention_backend,
        "--step-cache": spec.speed.step_cache,
        "--name": name,
    }
    words += [word for option, value in options.items() if value for word in (option, value)]
    for component, source in spec.components.items():
        words += ["--component", f"{component}={absolute(source)}"]
    for lora in spec.loras:
        denoiser, source = split_denoiser(lora)
        words += ["--lora", f"{denoiser}={absolute(source)}" if denoiser else absolute(source)]
    words += [switch for switch, on in _switches(spec.placement).items() if on]
    words += ["--lora-partial"] * spec.lora_partial
    words += ["--compile"] * spec.speed.compile + ["--no-safety-checker"] * spec.no_safety_checker
    words += ["--allow-pickle"] * spec.allow_pickle + ["--trust-remote-code"] * spec.trust_remote_code
    return tuple(words)


def _placement_options(placement: Placement) -> dict[str, str]:
    usual = Placement()
    options = {
        "--memory": placement.memory if placement.memory != usual.memory else "",
        "--cpu-offload": placement.cpu_offload if placement.cpu_offload != usual.cpu_offload else "",
        # In bytes, since it is part of the key: 12 GB are no short number of GiB.
        "--device-memory": f"{placement.device_memory}B" if placement.device_memory else "",
    }
    if placement.quantize == "none":
        return options
    options |= {"--quantize": placement.quantize, "--quantize-backend": placement.quantize_backend}
    return options | {"--quantize-components": ",".join(placement.quantize_components)}


def _switches(placement: Placement) -> dict[str, bool]:
    given = placement.to_json().items()
    return {"--" + name.replace("_", "-"): value for name, value in given if isinstance(value, bool)}


def absolute(source: str) -> str:
    """A local source as an absolute path; anything else as it is."""
    path, mark, scale = source.rpartition("@")
    for text, rest in ((source, ""), (path, mark + scale)):
        if text and os.path.exists(os.path.expanduser(text)):
            return str(user_path(text).absolute()) + rest
    return source


def _json(value: Mapping[str, Any]) -> str:

    return json.dumps(dict(value)) if value else ""
