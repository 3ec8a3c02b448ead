"""What an error keeps alive."""

from __future__ import annotations

import weakref
from typing import Any

import pytest

from diffpipe.core.errors import let_go

# How torch calls a module that has hooks (Module._call_impl).
INNER = """
def call(inputs):
    def inner():
        raise ValueError(f"it failed with {inputs}")
    inner()
"""


class Tensor:
    """Something that is seen to go."""


def test_an_error_that_is_let_go_keeps_nothing_of_the_frames_that_it_came_through() -> None:
    held: list[weakref.ref[Tensor]] = []

    def call() -> None:
        latents, names = Tensor(), []
        held.append(weakref.ref(latents))
        names += locals()  # as pipelines do for their callbacks: it makes a copy that the frame keeps
        module(Tensor())

    def module(inputs: Tensor) -> None:
        held.append(weakref.ref(inputs))
        names: dict[str, Any] = {}
        exec(compile(INNER, "/site-packages/torch/nn/modules/module.py", "exec"), names)
        names["call"](inputs)

    def caller() -> None:
        embeddings = Tensor()
        held.append(weakref.ref(embeddings))
        try:
            call()
        except ValueError as error:
            raise RuntimeError("the call failed") from error

    with pytest.raises(RuntimeError) as caught:
        caller()
    let_go(caught.value)
    assert [reference() for reference in held] == [None, None, None]


def test_a_function_that_is_kept_can_be_called_again_after_it_failed() -> None:
    """As kernels that are made at their first use."""
    kept: list[Any] = []

    def run(value: int) -> int:
        if not kept:
            scale = 2

            def step(value: int) -> int:
                if value < 0:
                    raise ValueError
                return scale * value

            kept.append(step)
        return int(kept[0](value))

    with pytest.raises(ValueError) as caught:  # noqa: PT011
        run(-1)
    let_go(caught.value)
    assert run(3) == 6
