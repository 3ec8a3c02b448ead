"""What an error keeps alive."""

from __future__ import annotations

import weakref

import pytest

from diffpipe.core.errors import let_go


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

        def inner() -> None:  # as torch calls modules with hooks
            raise ValueError(f"it failed with {inputs}")

        inner()

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
