"""What each kind of device does in its own way: fakes of torch's modules, as a machine has one kind at most."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from diffpipe.core.errors import UsageError
from diffpipe.engine.placement import devices
from diffpipe.engine.placement.devices import RandomStates
from diffpipe.engine.seams import torch_seam
from diffpipe.memory import device_facts
from diffpipe.memory.device_facts import Device


class Backend(ModuleType):
    """One of torch's modules, which knows what it was asked for."""

    def __init__(self, name: str, **numbers: int) -> None:
        super().__init__(name)
        self.emptied = 0
        self.states = [torch.tensor([1]), torch.tensor([2])]
        for function, number in numbers.items():
            setattr(self, function, lambda *_, number=number: number)

    def empty_cache(self) -> None:
        self.emptied += 1

    def is_initialized(self) -> bool:
        return True


class Several(Backend):
    """One with several devices: Apple's module has one, and functions of its own for its numbers."""

    def get_rng_state_all(self) -> list[torch.Tensor]:
        return [state.clone() for state in self.states]

    def set_rng_state_all(self, states: list[torch.Tensor]) -> None:
        self.states = states


class One(Backend):
    def get_rng_state(self) -> torch.Tensor:
        return self.states[0].clone()

    def set_rng_state(self, state: torch.Tensor) -> None:
        self.states = [state]


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Backend]]:
    found = {
        "cuda": Several("torch.cuda", max_memory_allocated=10, memory_reserved=20),
        "xpu": Several("torch.xpu", max_memory_allocated=30, memory_reserved=40),
        "mps": One("torch.mps", driver_allocated_memory=50),
    }
    for name, module in found.items():
        monkeypatch.setattr(torch, name, module)
    torch.get_device_module.cache_clear()
    yield found
    torch.get_device_module.cache_clear()


@pytest.mark.parametrize(
    ("device", "peak", "held"), [("cuda:1", 10, 20), ("xpu", 30, 40), ("mps", None, 50), ("cpu", None, None)]
)
def test_memory_of_every_kind_of_device(
    backends: dict[str, Backend], device: str, peak: int | None, held: int | None
) -> None:
    assert (devices.peak_memory(device), devices.device_memory(device)) == (peak, held)
    devices.release(device)
    kind = device.partition(":")[0]
    assert {name: one.emptied for name, one in backends.items()} == {name: int(name == kind) for name in backends}


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_random_numbers_go_on_where_they_were(
    backends: dict[str, Backend], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    accelerator = torch.device(kind)
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: accelerator)
    before = RandomStates.now()
    first = torch.rand(3)
    backends[kind].states = [torch.tensor([7])]
    before.restore()
    assert torch.equal(torch.rand(3), first)
    before.restore()
    drawn = random.random(), float(np.random.rand())
    before.restore()
    assert (random.random(), float(np.random.rand())) == drawn
    assert [int(state) for state in backends[kind].states] == ([1] if kind == "mps" else [1, 2])


def test_an_accelerator_that_is_not_in_use_is_left_alone(
    backends: dict[str, Backend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(Backend, "is_initialized", lambda self: False)
    assert RandomStates.now().accelerator == []


@pytest.mark.parametrize(
    ("error", "has"),
    [
        (None, True),
        (TypeError("Trying to convert Float8_e4m3fn to the MPS backend but it does not have support for that"), False),
        (torch.OutOfMemoryError("CUDA out of memory"), True),  # a card that others fill has float8 all the same
        (RuntimeError("CUDA error: out of memory"), True),
        (RuntimeError('"copy_" not implemented for Float8_e4m3fn'), False),
    ],
)
def test_whether_a_device_has_float8_is_not_whether_it_has_room(
    monkeypatch: pytest.MonkeyPatch, error: Exception | None, has: bool
) -> None:
    def to(tensor: torch.Tensor, device: str) -> torch.Tensor:
        if error is not None:
            raise error
        return tensor

    monkeypatch.setattr(torch.Tensor, "to", to)
    assert devices.has_float8("cuda") is has


def test_pinned_memory_is_asked_for_by_the_byte_and_what_the_user_set_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", asked.append)
    for said in ("", "expandable_segments:True", "pinned_max_round_threshold_mb:64"):
        monkeypatch.setattr(torch._C, "_accelerator_getAllocatorSettings", lambda said=said: said)
        torch_seam.pin_no_more_than_needed()
    assert asked == ["pinned_max_cached_size_mb:1", "expandable_segments:True,pinned_max_cached_size_mb:1"]


@pytest.mark.parametrize(("device", "streams"), [("cuda:1", True), ("mps", False), ("cpu", False)])
def test_which_devices_have_streams_is_asked_of_them(backends: dict[str, Backend], device: str, streams: bool) -> None:
    backends["cuda"].Stream = object  # type: ignore[attr-defined]
    assert devices.has_streams(device) is streams


@pytest.mark.parametrize(("device", "used"), [("cuda:1", ["cuda:1"]), ("cuda:0", []), ("cuda", []), ("cpu", [])])
def test_the_device_is_the_one_that_streams_go_to(
    monkeypatch: pytest.MonkeyPatch, device: str, used: list[str]
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch.accelerator, "set_device_index", lambda index: asked.append(str(index)))
    devices.use(device)
    assert asked == used


@pytest.fixture
def two(monkeypatch: pytest.MonkeyPatch) -> None:
    found = (Device("cuda:0", "NVIDIA L4", 24), Device("cuda:1", "NVIDIA T4", 16))
    monkeypatch.setattr(device_facts, "from_torch", lambda torch: found)
    monkeypatch.setattr(device_facts, "keep", lambda found: None)


@pytest.mark.parametrize(
    ("wanted", "chosen"), [("auto", "cuda:0"), ("cuda", "cuda"), ("cuda:1", "cuda:1"), ("cpu", "cpu")]
)
def test_the_device_to_run_on(two: None, wanted: str, chosen: str) -> None:
    assert devices.choose_device(wanted) == chosen


def test_a_device_that_is_not_here(two: None) -> None:
    with pytest.raises(UsageError) as caught:
        devices.choose_device("xpu")
    assert (caught.value.message, caught.value.hint) == (
        "there is no device 'xpu' here",
        "available: cuda:0, cuda:1, cpu",
    )


def test_what_results_depend_on_is_the_kind_of_device(two: None) -> None:
    assert [devices.kind(name) for name in ("cuda", "cuda:1")] == ["cuda: NVIDIA L4", "cuda: NVIDIA T4"]
    assert devices.kind("cpu").startswith("cpu: ")


@pytest.mark.parametrize(
    ("error", "ran_out"),
    [
        (torch.OutOfMemoryError("CUDA out of memory"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 18.1 GB)"), True),
        (RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory"), True),
        (MemoryError(), True),
        (torch.AcceleratorError("CUDA error: out of memory"), True),  # of pinned memory, and of a context
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), True),
        (RuntimeError("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"), True),
        (torch.AcceleratorError("CUDA error: an illegal memory access was encountered"), False),
        (ValueError("the prompt asks for a robot out of memory"), False),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_errors_that_say_that_memory_ran_out(error: BaseException, ran_out: bool) -> None:
    assert devices.out_of_memory(error) is ran_out


def test_another_process_is_answered_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def from_torch(torch: Any, *, free: bool) -> tuple[Device, ...]:
        return (Device("xpu:0", "Arc", 16, shared=True, free=8 if free else None),)

    monkeypatch.setattr(device_facts, "from_torch", from_torch)
    monkeypatch.setattr(sys, "argv", ["devices", "--free"])
    devices._main()
    (line,) = capsys.readouterr().out.splitlines()
    assert device_facts._parsed(line) == (Device("xpu:0", "Arc", 16, shared=True, free=8),)
