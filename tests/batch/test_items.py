"""Rows -> requests: seeds, ids, sweeps, what is refused, and what a journal has already."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.batch.argument_values import MOST
from diffpipe.batch.items import ID, Batch, Earlier, Refused, items
from diffpipe.batch.journal import opened
from diffpipe.batch.output_paths import Outputs
from diffpipe.batch.prompt_files import Row
from diffpipe.core.errors import UsageError
from diffpipe.core.flag import MAX_SEED, Flag
from diffpipe.core.request import Request

KEY = "0123456789ab" + "c" * 52
FLAGS: dict[str, Flag] = {
    "prompt": Flag("prompt", "text", required=True, help="What to draw."),
    "width": Flag("width", "integer", default=64, minimum=16, multiple_of=16),
    "guidance_scale": Flag("guidance_scale", "number", default=3.5),
    "image": Flag("image", "image"),
    "num_images_per_prompt": Flag("num_images_per_prompt", "integer", default=1),
}


@pytest.fixture(autouse=True)
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


BATCH = Batch(FLAGS, frozenset(FLAGS), {}, Outputs(), "flux", KEY, origin=1)


def rows(*values: Mapping[str, Any]) -> list[Row]:
    return [Row(f"p.jsonl line {number}", number, value) for number, value in enumerate(values, 1)]


def requests(arguments: Mapping[str, Any], seed: int | None, count: int, **more: Any) -> list[Request]:
    """What one row from flags alone makes; the first error is raised."""
    batch = replace(BATCH, flags={}, arguments=arguments, seed=seed, count=count, **more)
    return planned([Row()], batch)


def planned(given: Sequence[Row], batch: Batch = BATCH) -> list[Request]:
    found = []
    for item in items(given, batch):
        if isinstance(item, Refused):
            raise item.error
        assert isinstance(item, Request)
        found.append(item)
    return found


# Seeds


def test_seeds_count_up() -> None:
    made = requests({"prompt": "x"}, 7, 3)
    assert [(request.index, request.seed, request.paths) for request in made] == [
        (0, 7, ("flux-7.png",)),
        (1, 8, ("flux-8.png",)),
        (2, 9, ("flux-9.png",)),
    ]


def test_seeds_that_are_not_given_derive_from_the_batch_and_count_up() -> None:
    first, again, other = (requests({}, None, 2, origin=origin) for origin in (1, 1, 2))
    assert [request.seed - first[0].seed for request in first] == [0, 1]
    assert [request.seed for request in first] == [request.seed for request in again]
    assert first[0].seed != other[0].seed
    assert 0 <= first[0].seed < 2**32


@pytest.mark.parametrize(("seed", "count"), [(-1, 1), (MAX_SEED + 1, 1), (MAX_SEED, 2), (10**400, 1)])
def test_seeds_out_of_range(seed: int, count: int) -> None:
    with pytest.raises(UsageError, match=f"--seed {seed} is out of range"):
        requests({}, seed, count)


def test_the_last_seed_there_is() -> None:
    assert requests({}, MAX_SEED - 1, 2)[1].seed == MAX_SEED


@pytest.mark.parametrize("count", [0, -3, MOST + 1, 2**40])
@pytest.mark.parametrize("seed", [None, 1])
def test_counts_out_of_range(count: int, seed: int | None) -> None:
    with pytest.raises(UsageError, match=f"--count {count} is out of range"):
        requests({}, seed, count)


def test_several_pictures_a_call_share_its_seed() -> None:
    made = requests({"num_images_per_prompt": 2}, 1, 2)
    assert [(request.seed, request.paths) for request in made] == [
        (1, ("flux-1.png", "flux-1-2.png")),
        (2, ("flux-2.png", "flux-2-2.png")),
    ]


# Items


def test_an_id_tells_items_apart_and_is_the_same_again() -> None:
    one, two = (request.id for request in requests({"prompt": "x"}, 7, 2))
    assert one != two
    assert [request.id for request in requests({"prompt": "x"}, 7, 2)] == [one, two]
    assert requests({"prompt": "y"}, 7, 1)[0].id != one
    assert re.fullmatch(rf"[0-9a-f]{{{ID}}}", one)
    assert requests({"prompt": "x"}, 7, 1)[0].item.startswith(one)


def test_a_row_wins_over_flags_and_presets() -> None:
    batch = replace(BATCH, arguments={"prompt": "flag", "width": 32}, seed=1, count=2)
    first, second, third = planned(rows({"prompt": "row", "seed": 5, "count": 1}, {"width": 48}), batch)
    assert (first.arguments, first.seed) == ({"prompt": "row", "width": 32}, 5)
    assert [(one.arguments, one.seed) for one in (second, third)] == [
        ({"prompt": "flag", "width": 48}, 1),
        ({"prompt": "flag", "width": 48}, 2),
    ]


ROW = st.fixed_dictionaries(
    {"prompt": st.sampled_from(["a", "b", "c"])},
    optional={"seed": st.integers(0, 3), "width": st.sampled_from([16, 32]), "count": st.integers(1, 2)},
)


@given(given=st.lists(ROW, max_size=6), first=st.integers(0, 9))
def test_an_item_does_not_depend_on_its_place_or_its_neighbours(given: list[dict[str, Any]], first: int) -> None:
    """Equal rows without a seed are told apart by their number among each other alone."""
    batch = replace(BATCH, outputs=Outputs("{id}"), origin=first)

    def results(order: list[dict[str, Any]]) -> list[tuple[str, int, tuple[str, ...]]]:
        return sorted((one.id, one.seed, one.paths) for one in planned(rows(*order), batch))

    assert results(given) == results(given[::-1])
    alone = {key for row in given for key in results([row])}
    assert alone <= set(results(given))
    assert len({id for id, _, _ in results(given)}) == len(results(given))


def test_equal_rows_make_different_pictures() -> None:
    one, two = planned(rows({"prompt": "x"}, {"prompt": "x"}))
    assert one.seed != two.seed
    assert planned(rows({"prompt": "y"}, {"prompt": "x"}, {"prompt": "x"}))[1:] == [
        replace(one, index=1), replace(two, index=2)
    ]  # fmt: skip


def test_ids_that_are_given_are_numbered_within_their_row_and_must_not_come_twice() -> None:
    batch = replace(BATCH, outputs=Outputs("{id}.png"))
    made = planned(rows({"prompt": "x", "id": "cat", "count": 2}, {"prompt": "x", "id": "dog"}), batch)
    assert [(one.id, one.paths) for one in made] == [
        ("cat-1", ("cat-1.png",)),
        ("cat-2", ("cat-2.png",)),
        ("dog", ("dog.png",)),
    ]
    with pytest.raises(UsageError) as caught:
        planned(rows({"prompt": "x", "id": "cat"}, {"prompt": "y", "id": "cat"}))
    assert caught.value.message == "p.jsonl line 2: the id 'cat' is there already"


def test_sweeps_are_crossed_with_the_rows_on_the_same_noise() -> None:
    batch = replace(BATCH, swept={"guidance_scale": [2.0, 5.0], "width": [16, 32]})
    made = planned(rows({"prompt": "a"}, {"prompt": "b"}), batch)
    assert [(o.arguments["prompt"], o.arguments["guidance_scale"], o.arguments["width"]) for o in made] == [
        (prompt, scale, width) for prompt in "ab" for scale in (2.0, 5.0) for width in (16, 32)
    ]
    assert len({one.seed for one in made[:4]}) == 1
    assert made[0].seed != made[4].seed
    seeds = planned(rows({"prompt": "a"}), replace(BATCH, swept={"seed": [1, 2, 9]}))
    assert [one.seed for one in seeds] == [1, 2, 9]


def test_what_is_swept_has_no_part_in_a_drawn_seed() -> None:
    (alone,) = planned(rows({"prompt": "a", "guidance_scale": 2.0}))
    for values in ([16], [32], [16, 32], [48, 16]):
        swept = planned(rows({"prompt": "a", "guidance_scale": 2.0}), replace(BATCH, swept={"width": values}))
        assert [one.seed for one in swept] == [alone.seed] * len(values)
    (other,) = planned(rows({"prompt": "a", "guidance_scale": 5.0}))
    assert other.seed != alone.seed


def test_a_drawn_seed_is_of_pipeline_origin_arguments_count_and_id() -> None:
    row = {"prompt": "a", "id": "cat"}
    changed = [
        (row, BATCH), (row, replace(BATCH, key="d" * 64)), (row, replace(BATCH, origin=2)),
        (row, replace(BATCH, arguments={"width": 32})), (row, replace(BATCH, count=2)),
        ({**row, "id": "dog"}, BATCH), ({**row, "prompt": "b"}, BATCH), ({"prompt": "a"}, BATCH),
    ]  # fmt: skip
    seeds = [planned(rows(given), batch)[0].seed for given, batch in changed]
    assert len(set(seeds)) == len(changed)
    assert planned(rows({**row, "output": "x.png"}))[0].seed == seeds[0]  # where it goes changes no picture


def test_the_seeds_that_are_drawn_for_many_items_of_a_row_are_all_short(work: Path) -> None:
    for origin in range(50):
        made = planned(rows({"prompt": "a"}), replace(BATCH, origin=origin, count=3, outputs=Outputs("{id}")))
        assert all(0 <= one.seed < 2**32 for one in made)


def test_values_that_fitting_makes_one_are_items_of_their_own() -> None:
    made = planned(rows({"prompt": "x"}), replace(BATCH, swept={"width": [60, 68]}, fit=True))
    assert [request.arguments["width"] for request in made] == [64, 64]
    assert made[1].id == f"{made[0].id}-2"


def test_what_is_swept_must_not_be_in_a_row() -> None:
    with pytest.raises(UsageError, match="line 1: width is swept by --sweep"):
        planned(rows({"prompt": "a", "width": 32}), replace(BATCH, swept={"width": [16]}))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "widht": 3}, "p.jsonl line 1, column widht: the pipeline takes no 'widht'"),
        ({"prompt": "x", "width": "wide"}, "p.jsonl line 1, column width: 'wide' is no whole number"),
        ({"prompt": "x", "width": 33}, "p.jsonl line 1: --width 33 is no multiple of 16"),
        ({}, "p.jsonl line 1: --prompt is missing"),
        ({"prompt": "x", "image": "no.png"}, "p.jsonl line 1: --image: there is no file no.png"),
        ({"prompt": "x", "seed": -1}, "p.jsonl line 1: --seed -1 is out of range"),
        ({"prompt": "x", "count": 0}, "p.jsonl line 1: --count 0 is out of range"),
        ({"prompt": "x", "id": "a\nb"}, "p.jsonl line 1: id and output must be text on one line"),
        ({"prompt": "x", "output": "../x"}, "p.jsonl line 1: the output '../x' leads out of the output folder"),
        ({"prompt": "x", "output": "/x"}, "p.jsonl line 1: the output '/x' leads out of the output folder"),
        ({"prompt": "x", "output": "C:x"}, "p.jsonl line 1: the output 'C:x' leads out of the output folder"),
        ({"prompt": "x", "output": "x.gif"}, "p.jsonl line 1: pictures are not written as .gif"),
        ({"prompt": "\udcff"}, "p.jsonl line 1: --prompt is not valid UTF-8"),
    ],
)  # fmt: skip
def test_rows_that_are_refused_do_not_stop_the_others(row: dict[str, Any], message: str) -> None:
    refused, other = items(rows(row, {"prompt": "y"}), BATCH)
    assert isinstance(refused, Refused)
    assert refused.error.message == message
    assert isinstance(other, Request)
    assert refused.id == (row.get("id") or "line-1")


def test_outputs_of_rows_lie_in_the_output_folder_and_must_differ() -> None:
    batch = replace(BATCH, outputs=Outputs("out/"), seed=7)
    made = planned(rows({"prompt": "x", "output": "a/{prompt}.jpg"}, {"prompt": "y", "output": "b", "count": 2}), batch)
    assert [one.paths for one in made] == [("out/a/x.jpg",), ("out/b.png",), ("out/b-2.png",)]
    with pytest.raises(UsageError, match=r"line 2: out/b.png is the output of an earlier item"):
        planned(rows({"prompt": "x", "output": "b"}, {"prompt": "y", "output": "b"}), batch)


# What the journal has


def test_what_is_done_is_refused_skipped_or_made_again(work: Path) -> None:
    Path("flux-1.png").write_bytes(b"one")
    given = rows(
        {"prompt": "x", "seed": 1}, {"prompt": "x", "seed": 2}, {"prompt": "x", "seed": 3}, {"prompt": "x", "seed": 4}
    )
    with opened(work / "j.jsonl") as journal:
        journal.begin(KEY, 1)
        done, failed, started, _ = planned(given, replace(BATCH, outputs=Outputs(overwrite=True)))
        journal.done(done.id, done.item, 1, done.paths, 0.5)
        journal.failed(failed.id, failed.item, 2, "it broke")
        journal.started(started.id, started.item, 3, started.paths)
        Path("flux-3.png").write_bytes(b"finished, but not noted")
        batch = replace(BATCH, journal=journal)

        def kinds(**more: Any) -> list[str]:
            return [type(item).__name__ for item in items(given, replace(batch, **more))]

        assert kinds() == ["Refused", "Request", "Request", "Request"]
        assert kinds(resume=True) == ["Earlier", "Earlier", "Request", "Request"]
        assert kinds(resume=True, retry=True) == ["Earlier", "Request", "Request", "Request"]
        assert kinds(outputs=Outputs(overwrite=True)) == ["Request"] * 4
        again = [item for item in items(given, replace(batch, resume=True)) if isinstance(item, Request)]
        assert [(one.paths, one.overwrite) for one in again] == [(("flux-3.png",), True), (("flux-4.png",), False)]
        Path("flux-1.png").unlink()
        assert kinds(resume=True)[0] == "Request"
        Path("flux-1.png").write_bytes(b"mine")
        first = next(iter(items(given, replace(batch, resume=True))))
        assert isinstance(first, Request)
        assert (first.paths, first.overwrite) == (("flux-1-2.png",), False)


def test_an_id_of_the_journal_with_other_arguments_is_refused(work: Path) -> None:
    Path("x.png").write_bytes(b"one")
    with opened(work / "j.jsonl") as journal:
        (one,) = planned(rows({"id": "cat", "prompt": "x", "seed": 1}))
        journal.begin(KEY, 1)
        journal.done(one.id, one.item, 1, ["x.png"], 0.5)
        batch = replace(BATCH, journal=journal, resume=True)
        (earlier,) = items(rows({"id": "cat", "prompt": "x", "seed": 1}), batch)
        (refused,) = items(rows({"id": "cat", "prompt": "y", "seed": 1}), batch)
    assert isinstance(earlier, Earlier)
    assert isinstance(refused, Refused)
    assert refused.error.message == "p.jsonl line 1: the journal has cat with another prompt, seed or argument"
