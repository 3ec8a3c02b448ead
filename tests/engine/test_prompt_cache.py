"""Equal prompts are encoded once, and the pictures are the same to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Warm

from diffpipe.cache.store import Store
from diffpipe.cache.verify import locate
from diffpipe.core.request import Request
from diffpipe.engine.running import prompt_cache
from diffpipe.engine.running.prompt_cache import install, remembering
from diffpipe.runners.local import run_here
from diffpipe.runners.settings import RunSettings


class Encoder:
    """A pipeline's encode_prompt that counts its calls; `_guidance_scale` is kept as pipelines keep it."""

    def __init__(self) -> None:
        self.calls: list[Any] = []
        self._guidance_scale = 1.0
        self._num_timesteps = 0

    def encode_prompt(self, prompt: Any, device: Any = None, image: Any = None) -> tuple[Any, Any, list[Any]]:
        self.calls.append(prompt)
        return torch.full((2, 3), float(len(self.calls))), None, [torch.ones(1)]


def test_equal_calls_are_answered_from_memory() -> None:
    pipe = Encoder()
    install(pipe)
    cpu = torch.device("cpu")
    for _ in range(3):
        whole, nothing, parts = pipe.encode_prompt("a fox", device=cpu)
        assert torch.equal(whole, torch.full((2, 3), 1.0))
        assert (nothing, parts) == (None, [torch.ones(1)])
        whole.zero_()  # a pipeline may change what it got, each time
        parts[0].zero_()
        parts.clear()
    assert pipe.calls == ["a fox"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a",), ("b",)),
        ((["a"],), (("a",),)),
        (("a", "cpu"), ("a", torch.device("cpu"))),
        ((1,), (True,)),
        ((1,), (1.0,)),
    ],
)
def test_calls_that_differ_are_told_apart(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    pipe = Encoder()
    install(pipe)
    pipe.encode_prompt(*one)
    pipe.encode_prompt(*other)
    assert len(pipe.calls) == 2


def test_settings_that_the_pipeline_keeps_tell_calls_apart_and_its_progress_does_not() -> None:
    pipe = Encoder()
    install(pipe)
    pipe.encode_prompt("a")
    pipe._num_timesteps = 8
    pipe.encode_prompt("a")
    assert len(pipe.calls) == 1
    pipe._guidance_scale = 5.0
    pipe.encode_prompt("a")
    assert len(pipe.calls) == 2


def test_what_is_not_plain_goes_through() -> None:
    pipe = Encoder()
    install(pipe)
    for _ in range(2):
        pipe.encode_prompt("a", image=torch.ones(2))
    assert len(pipe.calls) == 2


def test_what_was_not_used_for_longest_is_forgotten_first() -> None:
    pipe = Encoder()
    encode = remembering(pipe.encode_prompt, largest=60)  # 28 bytes each: two fit
    for prompt in ("a", "b", "a", "c", "a", "b"):
        encode(prompt)
    assert pipe.calls == ["a", "b", "c", "b"]


def test_pictures_are_the_same_with_it_and_without(warm: Warm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    warm("build", "demo", check=True)
    store = Store(warm.home)
    entry = store.find("demo")
    manifest = entry.manifest()
    small = {"width": 64, "height": 64, "num_inference_steps": 1}
    calls = [("a fox", 3.0), ("a fox", 3.0), ("a cat", 3.0), ("a fox", 5.0), ("a fox", 3.0)]
    encoded: list[int] = []

    def pictures(name: str) -> list[bytes]:
        encoded.append(0)
        requests = [
            Request(at, at, {"prompt": prompt, "guidance_scale": scale, **small}, (str(tmp_path / name / f"{at}.png"),))
            for at, (prompt, scale) in enumerate(calls)
        ]
        settings = RunSettings(lambda request: request.arguments, lambda *_: None)
        done = list(run_here(manifest, locate(entry, manifest), requests, settings))
        assert [outcome.error for outcome in done] == [None] * len(calls)
        return [Path(outcome.artifacts[0].path).read_bytes() for outcome in done]

    def counting(pipe: Any) -> None:
        encode = type(pipe.text_encoder_2 if getattr(pipe, "text_encoder_2", None) else pipe.text_encoder).forward

        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            encoded[-1] += 1
            return encode(self, *args, **kwargs)

        part = pipe.text_encoder_2 if getattr(pipe, "text_encoder_2", None) else pipe.text_encoder
        part.forward = forward.__get__(part)

    monkeypatch.setattr(prompt_cache, "install", lambda pipe: (counting(pipe), install(pipe)))
    with_it = pictures("with")
    monkeypatch.setattr(prompt_cache, "install", counting)
    without = pictures("without")
    assert with_it == without
    assert encoded == [3, 5]  # a fox, a cat, and a fox at another guidance scale
