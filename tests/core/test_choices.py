"""The words of options: what the command line offers is what the engine knows."""

from __future__ import annotations

from typing import get_args

from diffpipe.core.choices import DTYPES, AttentionBackend, StepCache
from diffpipe.core.device_names import DEVICE, DEVICES
from diffpipe.engine.placement import speed
from diffpipe.memory.estimate import BYTES


def test_the_engine_and_the_plan_know_every_word() -> None:
    assert tuple(speed.BACKENDS) == get_args(AttentionBackend)
    assert tuple(speed.CACHES) == get_args(StepCache)
    assert set(BYTES) == set(DTYPES)


def test_devices_may_have_an_index_where_there_can_be_several() -> None:
    assert all(DEVICE.fullmatch(name) for name in (*DEVICES, "cuda:1", "xpu:0"))
    wrong = ("mps:0", "cpu:1", "auto:0", "cuda:", "cuda:1 ", "meta", "CUDA", "cuda:x")
    assert not any(DEVICE.fullmatch(name) for name in wrong)
