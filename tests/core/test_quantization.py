"""What quantization leaves alone, and how it groups the weights of a row."""

from __future__ import annotations

import pytest

from diffpipe.core.quantization import group_size, left, quantized_by_default


@pytest.mark.parametrize(
    ("layer", "kept"),
    [
        ("proj_out", True),
        ("single_transformer_blocks.0.proj_out", False),
        ("final_layer.linear", True),
        ("decoder.final_layer_norm", True),
        ("lm_head", True),
        ("model.lm_head", True),
        ("lm_head_2", False),
        ("transformer_blocks.0.attn.to_out.0", False),
    ],
)
def test_layers_that_keep_their_format(layer: str, kept: bool) -> None:
    assert left(layer) is kept


@pytest.mark.parametrize(
    ("columns", "size"),
    [(64, None), (128, None), (160, 32), (192, 96), (256, 128), (320, 64), (3072, 128), (130, None)],
)
def test_the_group_of_a_row(columns: int, size: int | None) -> None:
    """The largest of 128, 96, 64 and 32 that divides a row longer than 128."""
    assert group_size(columns) == size


def test_components_quantized_where_none_are_named() -> None:
    names = ("vae", "unet", "text_encoder_2", "text_encoder", "scheduler", "prior_prior", "image_encoder", "prior")
    assert quantized_by_default(names) == ["prior", "prior_prior", "text_encoder", "text_encoder_2", "unet"]
