"""Packages outside the bounds that diffpipe's metadata states. The metadata here are files as installers write them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from diffpipe.core.bounds import Misfit, misfits

Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Write a distribution's metadata where Python finds it before any other: install(name, version, *more lines)."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(name: str, version: str, *lines: str) -> None:
        folder = tmp_path / f"{name.replace('-', '_')}-{version}.dist-info"
        folder.mkdir()
        head = ["Metadata-Version: 2.4", f"Name: {name}", f"Version: {version}", *lines]
        (folder / "METADATA").write_text("\n".join([*head, "", ""]), encoding="utf-8")

    return write


@pytest.mark.parametrize(
    ("version", "wanted", "fits"),
    [
        ("0.19", ">=0.19,<1", True),
        ("0.18.1", ">=0.19,<1", False),
        ("1.0", "<1,>=0.19", False),
        ("0.19rc1", ">=0.19", False),
        ("2.13.0+cpu", ">=2.13", True),
        ("2.14.0.dev20261130+cu130", ">=2.13", True),
        ("0.1", "", True),
    ],
)
def test_a_version_fits_or_is_named(version: str, wanted: str, fits: bool, install: Install) -> None:
    install("some-engine", version)
    install("diffpipe", "1", f"Requires-Dist: some-engine{wanted}")
    assert [one.version for one in misfits()] == ([] if fits else [version])


def test_what_is_wrong_and_what_to_do(install: Install) -> None:
    install("peft", "0.17.0")
    install(
        "diffpipe", "1", "Requires-Dist: no-such-thing", "Requires-Dist: peft>=0.19", "Requires-Dist: wanting<2,>=1"
    )
    named = {one.package: (one.problem, one.remedy) for one in misfits()}
    assert named == {
        "no-such-thing": ("no-such-thing is missing: diffpipe needs it", "pip install 'no-such-thing'"),
        "peft": ("peft 0.17.0: diffpipe needs >=0.19", "pip install 'peft>=0.19'"),
        "wanting": ("wanting is missing: diffpipe needs <2,>=1", "pip install 'wanting<2,>=1'"),
    }


def test_extras_count_where_their_packages_are_installed(install: Install) -> None:
    install("present-extra", "1.0")
    install("formatter", "1.0")
    install(
        "diffpipe",
        "1",
        "Provides-Extra: fast",
        "Provides-Extra: dev",
        "Requires-Dist: present-extra>=2; extra == 'fast'",
        "Requires-Dist: absent-extra>=2; extra == 'fast'",
        "Requires-Dist: diffpipe[fast]; extra == 'dev'",
        "Requires-Dist: formatter>=2; extra == 'dev'",
    )
    assert misfits() == [Misfit("present-extra", "1.0", ">=2")]


def test_what_is_for_other_systems_does_not_count(install: Install) -> None:
    install("diffpipe", "1", "Requires-Dist: no-such-thing>=1; sys_platform == 'plan9'")
    assert misfits() == []
