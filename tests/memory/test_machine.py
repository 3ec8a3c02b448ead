"""Which device there is and how much memory is free: asked of torch, nvidia-smi and the system, all of them fakes."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
from conftest import Cli

from diffpipe.core.errors import UsageError
from diffpipe.memory import device_facts, machine
from diffpipe.memory.choose import machine_of
from diffpipe.memory.device_facts import Device, from_torch, signs
from diffpipe.memory.plan import Machine

GIB = 1 << 30
SMALL = {"name": "Small GPU", "total_memory": 8 * GIB, "uuid": "aa11-22"}
LARGE = {"name": "Large GPU", "total_memory": 24 * GIB, "uuid": "bb33-44"}


def torch_module(
    cuda: list[dict[str, object]] | None = None,
    xpu: list[dict[str, object]] | None = None,
    npu: list[dict[str, object]] | None = None,
    mps: int | None = None,
    free: int | None = None,
) -> ModuleType:
    """A torch with these devices: properties of each as its build gives them. `mps`: bytes recommended for it.

    `free`: what mem_get_info says, None where a driver cannot.
    """

    def kind(devices: list[dict[str, object]]) -> SimpleNamespace:
        def mem_get_info(index: int) -> tuple[int, object]:
            if free is None:
                raise RuntimeError("the device does not support it")
            return free, devices[index]["total_memory"]

        return SimpleNamespace(
            is_available=lambda: bool(devices),
            device_count=lambda: len(devices),
            get_device_properties=lambda index: SimpleNamespace(**devices[index]),
            mem_get_info=mem_get_info,
        )

    module = ModuleType("torch")
    there = {"cuda": bool(cuda), "xpu": bool(xpu), "npu": bool(npu), "mps": mps is not None}
    accelerator = next((SimpleNamespace(type=name) for name, found in there.items() if found), None)
    module.__dict__.update(
        cuda=kind(cuda or []),
        xpu=kind(xpu or []),
        npu=kind(npu or []),
        mps=SimpleNamespace(recommended_max_memory=lambda: mps),
        accelerator=SimpleNamespace(current_accelerator=lambda check_available: accelerator),
        get_device_module=lambda name: getattr(module, name),
    )
    return module


# What torch says


def test_no_device_but_the_cpu() -> None:
    assert from_torch(torch_module()) == ()


def test_cuda_and_rocm() -> None:
    """ROCm's build calls its devices cuda."""
    assert from_torch(torch_module(cuda=[LARGE, SMALL])) == (
        Device("cuda:0", "Large GPU", 24 * GIB, uuid="bb33-44"),
        Device("cuda:1", "Small GPU", 8 * GIB, uuid="aa11-22"),
    )


def test_devices_that_share_the_hosts_memory() -> None:
    tegra = {**SMALL, "is_integrated": 1}
    arc = {"name": "Arc 140V", "total_memory": 16 * GIB, "is_integrated_gpu": True}
    assert from_torch(torch_module(cuda=[tegra])) == (
        Device("cuda:0", "Small GPU", 8 * GIB, shared=True, uuid="aa11-22"),
    )
    assert from_torch(torch_module(xpu=[arc])) == (Device("xpu:0", "Arc 140V", 16 * GIB, shared=True),)


def test_xpu_of_a_torch_that_does_not_say_whether_it_shares() -> None:
    (found,) = from_torch(torch_module(xpu=[{"name": "Max 1550", "total_memory": 64 * GIB}]))
    assert found == Device("xpu:0", "Max 1550", 64 * GIB)


def test_apple_has_the_memory_that_is_recommended() -> None:
    assert from_torch(torch_module(mps=11 * GIB)) == (Device("mps", "Apple GPU", 11 * GIB, shared=True),)


def test_apple_of_a_torch_that_recommends_nothing_is_of_unknown_size() -> None:
    torch = torch_module(mps=1)
    del torch.mps.recommended_max_memory
    assert from_torch(torch) == (Device("mps", "Apple GPU", None, shared=True),)


def test_a_device_that_a_package_brings() -> None:
    torch = torch_module(npu=[{"name": "Ascend 910B", "total_memory": 64 * GIB}])
    assert from_torch(torch) == (Device("npu:0", "Ascend 910B", 64 * GIB),)


def test_what_is_free_is_asked_only_on_request_and_unknown_where_the_driver_cannot_say() -> None:
    assert from_torch(torch_module(cuda=[SMALL], free=3 * GIB))[0].free is None
    assert from_torch(torch_module(cuda=[SMALL], free=3 * GIB), free=True)[0].free == 3 * GIB
    assert from_torch(torch_module(xpu=[SMALL]), free=True)[0].free is None


# Signs of a GPU


@pytest.fixture
def bare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without any sign of a GPU, where programs can be put into bin/, and its cache."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("DIFFPIPE_HOME", str(tmp_path / "home"))
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    for name in device_facts.VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_cpu_alone_shows_no_sign(bare: Path) -> None:
    assert signs(bare) == ()


@pytest.mark.parametrize("node", ["dev/nvidiactl", "dev/kfd", "dev/dxg", "dev/nvmap"])
def test_nodes_of_drivers_are_signs(bare: Path, node: str) -> None:
    (bare / node).parent.mkdir()
    (bare / node).touch()
    assert signs(bare) == (node,)


@pytest.mark.parametrize(("vendor", "found"), [("0x8086", ("renderD128",)), ("0x1002", ()), ("0x1a03", ())])
def test_of_cards_that_draw_only_intels_are_signs(bare: Path, vendor: str, found: tuple[str, ...]) -> None:
    """AMD's can compute where there is /dev/kfd; those of servers' consoles cannot at all."""
    folder = bare / "sys/class/drm/renderD128/device"
    folder.mkdir(parents=True)
    (folder / "vendor").write_text(f"{vendor}\n")
    assert signs(bare) == found


@pytest.mark.parametrize(("system", "processor", "found"), [("Darwin", "arm64", ("Apple",)), ("Darwin", "x86_64", ())])
def test_apples_own_processors_are_signs(
    bare: Path, monkeypatch: pytest.MonkeyPatch, system: str, processor: str, found: tuple[str, ...]
) -> None:
    monkeypatch.setattr(device_facts.platform, "system", lambda: system)
    monkeypatch.setattr(device_facts.platform, "machine", lambda: processor)
    assert signs(bare) == found


# Asked once, in a process of its own

PACKAGE = """
import os
from types import SimpleNamespace as N
open({log!r}, "a").write("asked\\n")
devices = [N(**one) for one in {devices!r}]
order = os.environ.get("CUDA_VISIBLE_DEVICES")
seen = devices if order is None else [devices[int(word)] for word in order.split(",") if word]
cuda = N(is_available=lambda: bool(seen), device_count=lambda: len(seen), get_device_properties=seen.__getitem__,
    mem_get_info=lambda index: (seen[index].total_memory // 2, seen[index].total_memory))
accelerator = N(current_accelerator=lambda check_available: N(type="cuda") if seen else None)
get_device_module = {{"cuda": cuda}}.__getitem__
"""
Install = Callable[..., Path]


@pytest.fixture
def install(bare: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Installs a torch with these CUDA devices for other processes; gives the file that notes each time it is asked."""

    def package(*devices: dict[str, object]) -> Path:
        log = bare / "asked"
        log.touch()
        (bare / "packages/torch").mkdir(parents=True, exist_ok=True)
        (bare / "packages/torch/__init__.py").write_text(PACKAGE.format(log=str(log), devices=list(devices)))
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(bare / "packages"), *filter(None, sys.path)]))
        device_facts._known.cache_clear()
        return log

    return package


def smi(bare: Path, *lines: str) -> None:
    """An nvidia-smi that prints these lines of UUID and MiB free, and fails without any."""
    program = bare / "bin/nvidia-smi"
    program.write_text("#!/bin/sh\n" + "".join(f'echo "{line}"\n' for line in lines) + f"exit {0 if lines else 9}\n")
    program.chmod(0o755)


def asked(log: Path) -> int:
    device_facts._known.cache_clear()  # another process
    return len(log.read_text().splitlines())


def test_torch_is_not_asked_where_nothing_hints_at_a_gpu(
    bare: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = install(SMALL)
    monkeypatch.setattr(device_facts, "signs", lambda: ())
    assert machine.accelerators() == ()
    assert (asked(log), (bare / "home").exists()) == (0, False)


def test_torch_is_asked_once_for_each_choice_of_devices(
    bare: Path, install: Install, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi(bare, "GPU-aa11-22, 8000")
    log = install(SMALL, LARGE)
    both = machine.accelerators()
    assert [device.description for device in both] == ["Small GPU", "Large GPU"]
    assert asked(log) == 1
    assert (machine.accelerators(), asked(log)) == (both, 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,0")
    assert [device.description for device in machine.accelerators()] == ["Large GPU", "Small GPU"]
    assert asked(log) == 2
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert (machine.accelerators(), asked(log)) == ((), 3)
    assert (machine.accelerators(), asked(log)) == ((), 3)  # that there is none is known, too


def test_names_for_completion_are_those_that_are_kept(bare: Path, install: Install) -> None:
    smi(bare, "GPU-aa11-22, 8000")
    log = install(SMALL, LARGE)
    kinds = ["auto", "cpu", "cuda", "mps", "xpu"]
    assert machine.names() == kinds
    assert asked(log) == 0
    assert len(machine.accelerators()) == 2
    assert machine.names() == [*kinds, "cuda:0", "cuda:1"]


def test_what_was_kept_and_is_damaged_is_asked_again(bare: Path, install: Install) -> None:
    smi(bare, "GPU-aa11-22, 8000")
    log = install(SMALL)
    found = machine.accelerators()
    (kept,) = (bare / "home/devices").iterdir()
    for text in ("", "{}x", '{"devices": [{"name": "toaster"}]}', '{"devices": [{"name": "cuda:0"}]}'):
        kept.write_text(text)
        before = asked(log)
        assert machine.accelerators() == found, text
        assert asked(log) == before + 1, text


def test_a_process_with_torch_keeps_what_it_sees(bare: Path, install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(bare, "GPU-aa11-22, 8000")
    log = install()
    assert machine.accelerators() == ()
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch", torch_module(cuda=[SMALL]))
        (here,) = machine.accelerators()
    assert asked(log) == 1
    assert (machine.accelerators(), asked(log)) == ((here,), 1)


def test_a_torch_that_cannot_be_imported_is_no_answer_to_keep(
    bare: Path, install: Install, caplog: pytest.LogCaptureFixture
) -> None:
    smi(bare, "GPU-aa11-22, 8000")
    install(SMALL)
    (bare / "packages/torch/__init__.py").write_text("raise ImportError('libcudart.so')")
    assert machine.accelerators() == ()
    assert "could not be asked" in caplog.text
    install(SMALL)
    assert [device.name for device in machine.accelerators()] == ["cuda:0"]


# Which one, and how much is free


@pytest.fixture
def two(bare: Path, install: Install) -> Path:
    """A machine with two GPUs, which nvidia-smi lists in another order than torch."""
    smi(bare, "GPU-aa11-22, 8000", "GPU-bb33-44, 24000")
    install(LARGE, SMALL)
    return bare


@pytest.mark.parametrize(
    ("name", "description"),
    [("auto", "Large GPU"), ("cuda", "Large GPU"), ("cuda:0", "Large GPU"), ("cuda:1", "Small GPU"), ("cuda:2", ""),
        ("xpu", ""), ("mps", ""), ("cpu", "")],
)  # fmt: skip
def test_what_a_name_means_here(two: Path, name: str, description: str) -> None:
    found = machine.accelerator(name)
    assert (found.description if found else "") == description
    assert machine.device_kind(name) == ("cpu" if name == "cpu" else "accelerator")


def test_auto_is_the_cpu_where_there_is_nothing_else(bare: Path, install: Install) -> None:
    smi(bare, "GPU-aa11-22, 8000")  # a GPU that this build of torch cannot use
    install()
    assert (machine.accelerator("auto"), machine.device_kind("auto")) == (None, "cpu")
    assert machine_of("auto", None).device == "cpu"


def test_free_memory_of_nvidias_gpus_by_their_uuid(two: Path) -> None:
    assert [machine.free(device) for device in machine.accelerators()] == [24000 << 20, 8000 << 20]
    assert machine_of("cuda:1", None).memory == 8000 << 20


@pytest.mark.parametrize("lines", [("GPU-bb33-44, [N/A]",), ("nonsense",), ()])
def test_torch_is_asked_for_what_nvidia_smi_does_not_say(two: Path, lines: tuple[str, ...]) -> None:
    smi(two, *lines)
    assert machine.free(machine.accelerators()[0]) == 12 * GIB  # half of it, as this torch says


def test_without_an_answer_nothing_is_guessed(two: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(two)
    machine.accelerators()
    (two / "packages/torch/__init__.py").write_text("raise ImportError")
    with pytest.raises(UsageError, match="nothing here says how much memory cuda:0 has"):
        machine_of("auto", None)
    with pytest.raises(UsageError, match="nothing here says how much memory xpu has"):
        machine_of("xpu", None)


@pytest.mark.parametrize(("total", "expected"), [(11 * GIB, 11 * GIB), (64 * GIB, 20 * GIB), (None, 20 * GIB)])
def test_shared_memory_is_as_free_as_the_hosts(
    monkeypatch: pytest.MonkeyPatch, total: int | None, expected: int
) -> None:
    monkeypatch.setattr(machine, "host_free", lambda: 20 * GIB)
    assert machine.free(Device("mps", "Apple GPU", total, shared=True)) == expected


def test_a_machine_that_is_not_here() -> None:
    assert machine_of("auto", 12 * GIB) == Machine("accelerator", 12 * GIB)
    assert machine_of("cpu", 12 * GIB) == Machine("cpu", 12 * GIB, 12 * GIB)


def test_a_plan_is_for_the_gpu_that_torch_can_use(two: Path, cli: Cli) -> None:
    done = cli.light("plan", "demo", "--device", "cuda:1", "--json", env={"DIFFPIPE_HOME": str(two / "home")})
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)["machine"]
    assert (made["device"], made["memory"]) == ("cuda", 8000 << 20)


# Host memory


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host of 100 bytes, 64 of them free, and 50 of swap."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=100, available=64))
    monkeypatch.setattr(psutil, "swap_memory", lambda: SimpleNamespace(total=50))


@pytest.mark.parametrize(
    ("files", "free", "memory", "total"),
    [
        ({}, 64, 100, 150),
        ({"memory.max": "max", "memory.current": "10"}, 64, 100, 150),
        ({"memory.max": "40", "memory.current": "10"}, 30, 40, 90),
        ({"memory.max": "40", "memory.current": "10", "memory.stat": "anon 2\ninactive_file 8"}, 38, 40, 90),
        ({"memory.max": "40", "memory.current": "10", "memory.swap.max": "0"}, 30, 40, 40),
        ({"memory.max": "90", "memory.current": "10"}, 64, 90, 140),
    ],
)
def test_host_memory_within_a_control_group(
    host: None, tmp_path: Path, files: dict[str, str], free: int, memory: int, total: int
) -> None:
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, text in files.items():
        (group / name).write_text(text)
    assert (machine.host_free(tmp_path), machine.host_memory(tmp_path)) == (free, memory)
    assert machine.host_total(tmp_path) == total


def test_a_system_that_does_not_say(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails() -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr(psutil, "virtual_memory", fails)
    assert (machine.host_free(), machine.host_memory(), machine.host_total()) == (None, None, None)


def test_this_process_holds_what_it_holds() -> None:
    before = machine.resident()
    held = bytearray(os.urandom(1 << 20)) * 64
    after = machine.resident()
    assert before is not None
    assert after is not None
    assert 0.9 * len(held) < after - before < 2 * len(held)
