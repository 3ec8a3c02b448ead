"""What is far too large is refused before anything is loaded: on machines that are not here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import manifests
import pytest
from manifests import component_json

from diffpipe.core.errors import DiffpipeError, Exit
from diffpipe.core.manifest import Manifest
from diffpipe.memory import machine, refuse
from diffpipe.memory.device_facts import Device

GIB = 1 << 30
DENOISER = {"name": "transformer", "class_name": "FluxTransformer2DModel", "parameters": 2_000_000_000}
DECODER = {"name": "vae", "class_name": "AutoencoderKL", "parameters": 80_000_000}
LARGE = {"width": 16384, "height": 16384}


def manifest(device: str = "cpu", pipeline: str = "FluxPipeline", **parts: Any) -> Manifest:
    components = [component_json(**part, bytes=2 * part["parameters"], dtypes=["BF16"]) for part in (DENOISER, DECODER)]
    flags = [{"name": "width", "kind": "integer", "multiple_of": 16}]
    config = manifests.config_json(placement={"device": device}, pipeline=pipeline)
    return manifests.manifest(config, **{"flags": flags, "components": components, **parts})


def told(found: Manifest, arguments: Mapping[str, Any], *, batch_size: int = 1) -> str:
    """The message and hint with which arguments are refused; "" where they are not."""
    try:
        refuse.check_of(found, {}, batch_size, True)(arguments)
    except DiffpipeError as error:
        return f"{error.message}\n{error.hint}" if error.exit_code == Exit.OUT_OF_MEMORY else repr(error)
    return ""


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine of 24 GiB with a GPU of 8 GiB."""
    monkeypatch.setattr(refuse, "host_total", lambda: 24 * GIB)
    monkeypatch.setattr(machine, "accelerators", lambda: (Device("cuda:0", "small", 8 * GIB),))


def test_what_fits_is_not_refused(small: None) -> None:
    assert told(manifest(), {"width": 1024, "height": 1024}) == ""


def test_what_is_far_too_large_is_refused_with_a_size_that_fits(small: None) -> None:
    message, hint = told(manifest(), LARGE).splitlines()
    assert message.startswith("16384 x 16384: some ")
    assert message.endswith("of memory would be needed, and this machine has 24.0 GiB in all")
    fits = {"width": int(hint.split()[0]), "height": int(hint.split()[2])}
    assert fits["width"] < 16384
    assert told(manifest(), fits) == ""


def test_a_batch_is_as_large_as_its_items_together(small: None) -> None:
    each = {"width": 1024, "height": 1024}
    assert told(manifest(), {**each, "num_images_per_prompt": 50}, batch_size=8).splitlines()[1].startswith("one at ")


def test_a_gpu_counts_with_what_stepping_down_saves(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(manifest("cuda"), {"width": 2048, "height": 2048}) == ""
    assert "and the GPU has 8.0 GiB in all" in told(manifest("cuda"), {"width": 32768, "height": 32768})
    for there in ((), (Device("cuda:0", "unknown", None),)):  # nothing says how large it is
        monkeypatch.setattr(machine, "accelerators", lambda there=there: there)
        assert told(manifest("cuda"), {"width": 32768, "height": 32768}) == ""


def test_a_gpu_without_memory_of_its_own_has_the_hosts(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "accelerators", lambda: (Device("mps", "Apple GPU", 16 * GIB, shared=True),))
    assert told(manifest("mps"), {"width": 2048, "height": 2048}) == ""
    found = told(manifest("mps"), {"width": 32768, "height": 32768})
    assert "and this machine has 24.0 GiB in all" in found


@pytest.mark.parametrize(
    "found",
    [
        manifest(components=[]),
        manifest(components=[component_json(**{**DENOISER, "parameters": 0})]),
        manifest(pipeline="UnheardOfPipeline"),
    ],
)
def test_what_is_not_known_refuses_nothing_of_a_usual_size(small: None, found: dict[str, Any]) -> None:
    assert told(found, {"width": 512, "height": 512}) == ""
    assert told(found, {}) == ""


def test_a_machine_that_does_not_say_refuses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refuse, "host_total", lambda: None)
    assert told(manifest(), LARGE) == ""
