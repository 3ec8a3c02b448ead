"""diffpipe doctor: devices with their memory, the cache, and what of the libraries is not used."""

from __future__ import annotations

import json

import psutil
import pytest
from conftest import Cli

from diffpipe.cli.doctor import DeviceShown, SeamMissing, missing
from diffpipe.engine.seams import Seam, seams


def test_what_this_machine_has(cli: Cli) -> None:
    done = cli("doctor", "--offline", "--json", check=True)
    facts = json.loads(done.stdout)
    assert [device["name"] for device in facts["devices"]][-1] == "cpu"
    cpu = facts["devices"][-1]
    assert 0 < cpu["free"] <= cpu["memory"] <= psutil.virtual_memory().total
    assert facts["cache"]["folder"] == str(cli.home)
    assert (facts["token"], facts["hub"]) == (False, "not asked (offline)")
    assert facts["not_used"] == [{"library": s.library, "name": s.name, "without": s.without}
        for s in seams() if not s.applies]  # fmt: skip


@pytest.mark.parametrize(
    ("device", "shown"),
    [
        (DeviceShown("cuda:0", "NVIDIA L4", 24_000_000_000, 20_000_000_000, False), "NVIDIA L4, 24.0 GB, 20.0 GB free"),
        (DeviceShown("xpu:0", "Arc", 16_000_000_000, None, True), "Arc, 16.0 GB of the host's memory"),
        (DeviceShown("mps", "Apple GPU", None, 8_000_000_000, True), "Apple GPU, 8.0 GB free"),
        (DeviceShown("cpu", "8 threads", 9_000_000_000, None, True), "8 threads, 9.0 GB"),
    ],
)
def test_a_device_in_words(device: DeviceShown, shown: str) -> None:
    assert str(device) == shown


def test_what_is_not_in_the_installed_libraries_is_said_with_what_happens_without_it() -> None:
    here = Seam("torch", "torch.version", "-", "-", file="torch/version.py", text="__version__")
    gone = Seam("torch", "torch.gone", "-", "it is slower", file="torch/version.py", text="no such words")
    other = Seam("no-such-library", "its.name", "-", "it fails", file="no_such/thing.py", text="")
    assert missing((here, gone, other)) == (
        SeamMissing("torch", "torch.gone", "it is slower"),
        SeamMissing("no-such-library", "its.name", "it fails"),
    )
