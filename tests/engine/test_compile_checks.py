"""What --compile needs of a machine, asked before anything is fetched."""

from __future__ import annotations

import pytest
from diffusers import AutoencoderKL, FluxTransformer2DModel

from diffpipe.core.errors import UsageError
from diffpipe.engine.placement import speed
from diffpipe.engine.seams import torch_seam


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """One with Linux, triton, gcc, and a device that torch compiles for with triton."""
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setattr(speed.sys, "platform", "linux")
    monkeypatch.setattr(speed.shutil, "which", {"gcc": "/usr/bin/gcc"}.get)
    monkeypatch.setattr(speed.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch_seam, "needs_triton", lambda device: True)
    monkeypatch.setattr(torch_seam, "takes_triton", lambda device: device != "cuda:1")
    return monkeypatch


def test_all_is_there(machine: pytest.MonkeyPatch) -> None:
    speed._check_compile(FluxTransformer2DModel, "cuda:0")
    machine.setattr(speed.shutil, "which", {}.get)
    machine.setenv("CC", "icx")
    speed._check_compile(FluxTransformer2DModel, "cuda:0")


def refused(model: type = FluxTransformer2DModel, device: str = "cuda:0") -> str:
    with pytest.raises(UsageError) as caught:
        speed._check_compile(model, device)
    return caught.value.message


def test_what_is_missing_is_named(machine: pytest.MonkeyPatch) -> None:
    assert refused(AutoencoderKL) == "--compile: AutoencoderKL does not say which blocks repeat"
    with machine.context() as patch:
        patch.setattr(speed.shutil, "which", {}.get)
        assert refused() == "--compile needs a C compiler here: triton calls one"
        patch.setattr(speed.importlib.util, "find_spec", lambda name: None)
        assert refused() == "--compile needs triton, which is not installed"
    assert refused(device="cuda:1") == "--compile: cuda:1 is too old for torch's compiler"
    machine.setattr(torch_seam, "needs_triton", lambda device: None)
    assert refused(device="mps") == "--compile: torch compiles nothing for mps"
