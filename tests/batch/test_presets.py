"""Presets: where they are found, what a pipeline takes of them, and what is refused."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest
from every_flag import FLAGS, NAMES

from diffpipe.batch import presets
from diffpipe.batch.presets import fitting, preset, preset_names
from diffpipe.core.errors import DiffpipeError, NotFoundError, UsageError


def test_a_preset_gives_what_the_pipeline_takes(tmp_path: Path) -> None:
    (tmp_path / "soft.toml").write_text('guidance-scale = 2\nsteps = 9\nid = "x"\nsigmas = [1.0, 0.5]\n')
    (tmp_path / "hard.json").write_text(json.dumps({"width": 64, "seed": 3}))
    (tmp_path / "notes.txt").write_text("no preset")
    assert preset_names(tmp_path) == ["hard", "soft"]
    soft = preset("soft", tmp_path)
    assert fitting(soft, "soft", FLAGS, NAMES) == ({"guidance_scale": 2, "sigmas": [1.0, 0.5]}, ["steps", "id"])
    assert preset(str(tmp_path / "hard.json"), tmp_path / "elsewhere") == {"width": 64, "seed": 3}
    assert fitting(preset("hard", tmp_path), "hard", FLAGS, NAMES | {"seed"}) == ({"width": 64, "seed": 3}, [])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("x.toml", "width = ", "--args x.toml: Invalid value"),
        ("x.toml", "extra = {when = 2026-01-01}", "--args x.toml: Object of type date is not JSON"),
        ("x.toml", "extra = {scale = inf}", "--args x.toml: Out of range float values are not JSON"),
        ("x.json", "[1]", "--args x.json is no JSON object"),
        ("x.json", "{", "--args x.json: column 2: it is no JSON"),
        ("x.toml", "\xff", "--args x.toml is not valid UTF-8"),
    ],
)
def test_presets_that_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, text: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError) as caught:
        preset(name, tmp_path)
    assert caught.value.message.startswith(message)


def test_a_preset_of_another_type_names_its_key() -> None:
    with pytest.raises(UsageError, match="--args soft, column width: 'wide' is no whole number"):
        fitting({"width": "wide"}, "soft", FLAGS, NAMES)


def test_a_preset_that_is_not_there_names_those_that_are(tmp_path: Path) -> None:
    (tmp_path / "soft.toml").write_text("")
    with pytest.raises(NotFoundError) as caught:
        preset("sofd", tmp_path)
    assert (caught.value.message, caught.value.hint) == (
        "--args: there is no file sofd",
        "the presets are: soft",
    )
    with pytest.raises(DiffpipeError):
        preset("../soft", tmp_path / "empty")


def test_a_preset_of_any_size_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "big.toml").write_bytes(b"#" * (presets.LARGEST + 1))
    with pytest.raises(UsageError, match=r"--args big is larger than"):
        preset("big", tmp_path)


def test_a_preset_may_come_through_a_pipe(tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "63")  # as /dev/fd/63 of --args <(jq ...)
    writer = threading.Thread(target=lambda: pipe.write_text("guidance_scale = 4.5\n"))
    writer.start()
    assert preset(str(pipe), tmp_path) == {"guidance_scale": 4.5}
    writer.join()
