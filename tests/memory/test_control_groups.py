"""Limits of control groups: the least of the process's own group and of every group above it."""

from __future__ import annotations

from pathlib import Path

import pytest

from diffpipe.memory.control_groups import Group, groups

SECOND = {"limit": "memory.max", "used": "memory.current", "swap": "memory.swap.max"}
FIRST = {"limit": "memory.limit_in_bytes", "used": "memory.usage_in_bytes", "swap": "memory.memsw.limit_in_bytes"}
UNLIMITED = 0x7FFFFFFFFFFFF000  # what version 1 says where there is no limit: the largest page-aligned number


def system(root: Path, membership: str, folders: dict[str, dict[str, object]]) -> Path:
    """A system whose process is in the groups that /proc/self/cgroup says."""
    (root / "proc/self").mkdir(parents=True)
    (root / "proc/self/cgroup").write_text(membership)
    for folder, files in folders.items():
        place = root / "sys/fs/cgroup" / folder
        place.mkdir(parents=True, exist_ok=True)
        for name, value in files.items():
            (place / name).write_text(f"{value}\n")
    return root


def second(limit: object, used: int, swap: object = "max", **stat: int) -> dict[str, object]:
    lines = "\n".join(f"{name} {value}" for name, value in {"anon": 1, **stat}.items())
    return {SECOND["limit"]: limit, SECOND["used"]: used, SECOND["swap"]: swap, "memory.stat": lines}


def test_every_group_above_the_own_one_counts(tmp_path: Path) -> None:
    """A job's step without a limit, in a job with one, in a slice with a larger one that others fill."""
    root = system(
        tmp_path,
        "0::/system.slice/job_7/step_0\n",
        {
            "": {"memory.stat": "anon 5"},  # the root has no limit of its own
            "system.slice": second(9000, 8500),
            "system.slice/job_7": second(4000, 1000, inactive_file=300),
            "system.slice/job_7/step_0": second("max", 900),
        },
    )
    found = list(groups(root))
    assert found == [Group(4000, 700), Group(9000, 8500)]
    assert [group.free for group in found] == [3300, 500]


def test_a_container_sees_its_own_group_as_the_root(tmp_path: Path) -> None:
    assert list(groups(system(tmp_path, "0::/\n", {"": second(4000, 1500)}))) == [Group(4000, 1500)]


def test_a_container_that_is_told_the_hosts_path_has_its_own_group_at_the_root(tmp_path: Path) -> None:
    root = system(tmp_path, "0::/docker/0123abc\n", {"": second(4000, 1500)})
    assert list(groups(root)) == [Group(4000, 1500)]


def test_a_path_outside_of_what_can_be_seen_ends_at_the_root(tmp_path: Path) -> None:
    assert list(groups(system(tmp_path, "0::/../other\n", {"": second(4000, 10)}))) == [Group(4000, 10)]


def test_version_1(tmp_path: Path) -> None:
    membership = "12:pids:/job\n5:cpu,memory:/slurm/uid_9/job_7\n1:name=systemd:/x\n0::/x\n"
    root = system(
        tmp_path,
        membership,
        {
            "memory": {FIRST["limit"]: UNLIMITED, FIRST["used"]: 99},
            "memory/slurm/uid_9": {FIRST["limit"]: 6000, FIRST["used"]: 5000, FIRST["swap"]: 7000,
                "memory.stat": "inactive_file 1\ntotal_inactive_file 400"},
            "memory/slurm/uid_9/job_7": {FIRST["limit"]: 8000, FIRST["used"]: 10},
        },
    )  # fmt: skip
    assert list(groups(root)) == [Group(8000, 10), Group(6000, 4600, 7000), Group(UNLIMITED, 99)]


def test_swap_has_a_limit_of_its_own_in_version_2_and_a_common_one_in_version_1(tmp_path: Path) -> None:
    (group,) = groups(system(tmp_path, "0::/\n", {"": second(4000, 10, swap=500)}))
    assert group.with_swap == 4500


@pytest.mark.parametrize("membership", ["0::/job\n", "", "nonsense\n"])
def test_systems_without_control_groups(tmp_path: Path, membership: str) -> None:
    assert list(groups(system(tmp_path, membership, {}))) == []
    assert list(groups(tmp_path / "nowhere")) == []


def test_more_used_than_the_limit_leaves_nothing(tmp_path: Path) -> None:
    (group,) = groups(system(tmp_path, "0::/\n", {"": second(1000, 1200)}))
    assert group.free == 0
