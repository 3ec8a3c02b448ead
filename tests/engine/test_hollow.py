"""A model by its settings alone: settings beyond any model end in seconds, and take no memory."""

from __future__ import annotations

import time
from typing import Any

import pytest

from diffpipe.core.errors import UsageError
from diffpipe.engine.classes import hollow as module
from diffpipe.engine.classes.hollow import hollow

torch = pytest.importorskip("torch")
diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")
resource = pytest.importorskip("resource")

FLUX = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 8,
    "num_attention_heads": 2,
    "axes_dims_rope": [2, 2, 4],
}
CLIP = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}


def test_it_has_the_layers_and_nothing_in_them() -> None:
    made = hollow(diffusers.FluxTransformer2DModel, FLUX, 50)
    assert {one.device.type for one in made.parameters()} == {"meta"}
    assert len(made.transformer_blocks) == 1


@pytest.mark.parametrize(
    ("name", "settings", "reason"),
    [
        ("FluxTransformer2DModel", {**FLUX, "num_layers": 20_000}, r"more than 3000 modules"),
        ("AutoencoderKL", {"layers_per_block": 20_000}, r"more than 3000 modules"),
        ("FluxTransformer2DModel", {**FLUX, "attention_head_dim": 10**9}, "."),
        ("WanTransformer3DModel", {"num_layers": 1, "rope_max_seq_len": 50_000_000}, "more than 2 GiB"),
        ("CLIPTextModel", {**CLIP, "num_hidden_layers": 20_000}, "more than 3000 modules"),
        ("CLIPTextModel", {**CLIP, "max_position_embeddings": 10**9}, "more than 2 GiB"),
    ],
)  # fmt: skip
def test_what_no_weights_could_be_of_is_refused(name: str, settings: dict[str, Any], reason: str) -> None:
    cls = getattr(diffusers, name, None) or getattr(transformers, name)
    limits, before, began = resource.getrlimit(resource.RLIMIT_DATA), _memory(), time.process_time()
    with pytest.raises(UsageError, match=reason) as error:
        hollow(cls, settings, 50)
    assert error.value.message.startswith(f"the settings of a {name} cannot be used: ")
    assert resource.getrlimit(resource.RLIMIT_DATA) == limits
    assert _memory() - before < 512 * 2**20
    assert time.process_time() - began < 60


def test_a_model_without_known_weights_has_a_bound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_MODULES", 100)
    with pytest.raises(UsageError, match="more than 100 modules"):
        hollow(diffusers.FluxTransformer2DModel, {**FLUX, "num_layers": 20})


def _memory() -> int:
    return int(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss) * 1024
