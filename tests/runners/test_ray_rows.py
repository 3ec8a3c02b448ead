"""What goes between a cluster and its driver without a cluster: rows, nodes, and the private names of Ray."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from diffpipe.core.errors import CacheError, DiffpipeError
from diffpipe.core.parsing import Fields, Misfit
from diffpipe.core.request import Artifact
from diffpipe.engine.seams.seam import Seam
from diffpipe.runners.ray_cluster import ray_seam
from diffpipe.runners.ray_cluster.made_row import MadeRequest, MadeRow
from diffpipe.runners.ray_cluster.nodes import Node, node_of, understood
from diffpipe.runners.wire import Answer

pytest.importorskip("ray.data")

MADE = Artifact("x/0.png", 7, 3, "image", 0.5, {"width": 64}, {"size": 9})
FRAMES = Artifact("x/frames", 7, 4, "video", 1.5)


def test_a_row_is_read_as_it_was_written() -> None:
    carried = ({"": 5}, {"00000.png": 3, "00001.png": 4}, None)
    requests = (MadeRequest(Answer((MADE, FRAMES, MADE), ("stretched",)), carried), None)
    row = MadeRow(requests, None, ("a line",), "peak 1 GB", "gpu-7")
    assert MadeRow.from_bytes(row.to_bytes()) == row
    assert MadeRow.from_bytes(MadeRow().to_bytes()) == MadeRow()


def test_a_row_that_stopped_the_run_says_why() -> None:
    stopped = MadeRow.from_bytes(MadeRow(stopped=CacheError("the disk is full", "make room")).to_bytes()).stopped
    assert stopped
    assert (stopped.message, stopped.hint, stopped.exit_code) == ("the disk is full", "make room", 6)


def test_the_seconds_of_an_item_are_those_of_the_row_over_its_items() -> None:
    both = MadeRequest(Answer((MADE, FRAMES)), (None, None))
    assert MadeRow((both, None, both, None)).seconds() == (0.5 + 1.5) * 2 / 4
    assert MadeRow().seconds() == 0


ROW: dict[str, Any] = {"requests": [], "stopped": None, "lines": [], "memory": "", "node": ""}
ANSWER: dict[str, Any] = {"artifacts": [], "warnings": [], "error": None, "carried": []}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        {**ROW, "requests": [5]},
        {**ROW, "requests": [{**ANSWER, "carried": [{"": 1}]}]},
        {**ROW, "requests": [{**ANSWER, "artifacts": [{}]}]},
        {**ROW, "stopped": {"message": "", "hint": "", "code": 99, "trace": ""}},
        {**ROW, "lines": [1]},
        {},
    ],
    ids=lambda data: str(data)[:30],
)
def test_what_is_no_row_is_an_error_in_words(data: object) -> None:
    with pytest.raises(DiffpipeError, match="Ray gave what is not understood"), understood():
        MadeRow.from_bytes(data if isinstance(data, bytes) else json.dumps(data).encode())


def test_sizes_below_nothing_are_a_misfit() -> None:
    made = {"path": "x.png", "seed": 0, "index": 0, "kind": "image", "seconds": 0.0}
    with pytest.raises(Misfit):
        MadeRequest.from_json(Fields({**ANSWER, "artifacts": [made], "carried": [{"": -1}]}))


# As `ray.nodes()` gives them; the value of a resource is absent where a node has none of it.
NODE = {
    "NodeID": "f0",
    "Alive": True,
    "NodeManagerAddress": "10.0.0.2",
    "NodeManagerHostname": "gpu-7",
    "Resources": {"CPU": 8.0, "memory": 1.0e10, "node:10.0.0.2": 1.0},
}


def test_a_node_of_ray() -> None:
    assert node_of(Fields(NODE)) == Node("f0", "gpu-7", "10.0.0.2", 8.0, 0.0)
    assert node_of(Fields(NODE)).label == "the node gpu-7 (10.0.0.2)"
    with pytest.raises(Misfit):
        node_of(Fields({**NODE, "Resources": {"CPU": -1}}))


# Private names


@pytest.mark.parametrize("seam", ray_seam.seams(), ids=lambda seam: seam.name)
def test_it_applies_to_what_is_installed(seam: Seam) -> None:
    assert seam.applies
    assert all((seam.buys, seam.without, seam.name))


def test_what_ray_says_of_its_nodes_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    from ray._private import worker

    monkeypatch.setattr(worker, "print_to_stdstream", worker.print_to_stdstream)
    ray_seam.keep_off_stdout()
    message = {"lines": ["the actor died"], "pid": "raylet", "ip": None, "is_err": False, "job": b""}
    with caplog.at_level(logging.INFO, "diffpipe.ray"):
        worker.print_to_stdstream(message, ignore_prefix=False)
    assert [record.getMessage() for record in caplog.records] == ["Ray: the actor died"]
    assert capsys.readouterr() == ("", "")


def test_settings_of_ray_data_are_there_to_be_set(monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.data import DataContext

    context = DataContext()
    monkeypatch.setattr(DataContext, "get_current", lambda: context)
    ray_seam.set_up_data(most_loads=7)
    found = {name: getattr(context, name) for name in (*ray_seam.DATA_SETTINGS, ray_seam.MOST_LOADS)}
    assert found == {**ray_seam.DATA_SETTINGS, "max_consecutive_actor_init_deaths": 7}
