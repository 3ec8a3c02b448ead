"""Text encoders as single files, under the names of the tools that write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from asked import Asked

from diffpipe.core.errors import UsageError
from diffpipe.core.manifest import Located
from diffpipe.core.text_encoder_names import own_names

torch = pytest.importorskip("torch")
checkpoints = pytest.importorskip("checkpoints")
from safetensors.torch import load_file, save_file  # noqa: E402

Tensors = dict[str, Any]
F8 = torch.float8_e4m3fn


@pytest.fixture(scope="module")
def flux(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(checkpoints.flux(tmp_path_factory.mktemp("models") / "flux"))


@pytest.fixture(scope="module")
def sdxl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import checkpoints_image

    folder = tmp_path_factory.mktemp("models") / "sdxl"
    checkpoints_image.sdxl().save_pretrained(folder)
    return folder


@pytest.fixture
def asked(tmp_path: Path) -> Asked:
    return Asked(tmp_path / "home")


def weights(folder: Path, name: str) -> Tensors:
    """An encoder's weights, CLIP's with the names that they had before transformers 5.6 took "text_model." away."""
    found = load_file(folder / name / "model.safetensors")
    if any("self_attn" in key for key in found):
        return {key if key.startswith("text_") else f"text_model.{key}": tensor for key, tensor in found.items()}
    return dict(found)


def save(path: Path, tensors: Mapping[str, Any]) -> Path:
    save_file({name: tensor.contiguous().clone() for name, tensor in tensors.items()}, path)
    return path


def encoder(asked: Asked, provider: str, model: Path, name: str, file: Path, **words: Any) -> Tensors:
    """The weights of a component that comes from a file, as it is loaded."""
    from diffpipe.engine.loading import load

    words = {"components": {name: str(file)}, **words}
    request = asked.request(provider, model, **words)
    manifest = asked.built(provider, model, **words)
    places = {role: Path(place) for role, place in request.pinned.locations.items()}
    return dict(getattr(load.load(manifest, Located(places), "cpu"), name).state_dict())


def same(found: Tensors, wanted: Tensors) -> bool:
    def bare(tensors: Tensors) -> Tensors:
        return {key.removeprefix("text_model."): tensor for key, tensor in tensors.items()}

    has = bare(found)
    return all(torch.equal(has[key], tensor) for key, tensor in bare(wanted).items())


POSITIONS = {"text_model.embeddings.position_ids": torch.arange(77).reshape(1, 77)}
CLIPS: dict[str, Callable[[Tensors], Tensors]] = {
    "clip_l": lambda t: t,
    "with what older ones have": lambda t: {**t, **POSITIONS, "logit_scale": torch.tensor(4.6)},
    "with a projection": lambda t: {**t, "text_projection.weight": torch.eye(32)},
    "after transformer.": lambda t: {f"transformer.{name}": one for name, one in t.items()},
    "as in a whole checkpoint": lambda t: {
        "model.diffusion_model.x.weight": torch.ones(1),
        **{f"text_encoders.clip_l.transformer.{name}": one for name, one in t.items()},
    },
    "flattened": lambda t: {name.removeprefix("text_model."): one for name, one in t.items()},
}


@pytest.mark.parametrize("written", CLIPS.values(), ids=CLIPS)
def test_clip_l(asked: Asked, flux: Path, tmp_path: Path, written: Callable[[Tensors], Tensors]) -> None:
    meant = weights(flux, "text_encoder")
    file = save(tmp_path / "clip_l.safetensors", written(meant))
    assert same(encoder(asked, "flux", flux, "text_encoder", file), meant)


def test_clip_g_has_its_projection(asked: Asked, sdxl: Path, tmp_path: Path) -> None:
    meant = weights(sdxl, "text_encoder_2")
    assert "text_projection.weight" in meant
    file = save(tmp_path / "clip_g.safetensors", meant)
    found = encoder(asked, "stable-diffusion", sdxl, "text_encoder_2", file, kind="xl")
    assert same(found, meant)
    less = {name: one for name, one in meant.items() if name != "text_projection.weight"}
    words = {"text_encoder_2": str(save(tmp_path / "less.safetensors", less))}
    with pytest.raises(UsageError, match=r"text_projection\.weight is missing"):
        asked.checked("stable-diffusion", sdxl, kind="xl", components=words)


def t5_scaled(tensors: Tensors) -> Tensors:
    """As t5xxl_fp8_e4m3fn_scaled.safetensors: each matrix with its scale, the table and norms as they are."""
    made: Tensors = {"scaled_fp8": torch.zeros(2).to(F8), "spiece_model": torch.zeros(9, dtype=torch.uint8)}
    for name, tensor in tensors.items():
        made[name] = tensor
        if tensor.ndim == 2 and ("SelfAttention" in name or "Dense" in name) and "bias" not in name:
            scale = tensor.abs().max() / 448
            made[name] = (tensor / scale).to(F8)
            made[name.removesuffix("weight") + "scale_weight"] = scale.reshape(())
    return made


def t5_meant(tensors: Tensors) -> Tensors:
    written = t5_scaled(tensors)
    scales = {name.removesuffix("scale_weight") + "weight": one for name, one in written.items() if "scale_" in name}
    return {name: written[name].float() * scales[name] if name in scales else written[name] for name in tensors}


def halves(tensors: Tensors) -> Tensors:
    return {name: tensor.half() for name, tensor in tensors.items()}


def eighths(tensors: Tensors) -> Tensors:
    return {name: tensor.to(F8) for name, tensor in tensors.items()}


def floats(tensors: Tensors) -> Tensors:
    return {name: tensor.float() for name, tensor in tensors.items()}


def whole_t5(tensors: Tensors) -> Tensors:
    """A T5 with the half that a pipeline does not use."""
    other = {"decoder.block.0.layer.0.SelfAttention.q.weight": torch.ones(4, 4), "lm_head.weight": torch.ones(4, 4)}
    return {**tensors, "encoder.embed_tokens.weight": tensors["shared.weight"], **other}


def embedded(tensors: Tensors) -> Tensors:
    return {name.replace("shared.", "encoder.embed_tokens."): tensor for name, tensor in tensors.items()}


def prefixed(tensors: Tensors) -> Tensors:
    return {f"text_encoders.t5xxl.transformer.{name}": tensor for name, tensor in tensors.items()}


Case = tuple[Callable[[Tensors], Tensors], Callable[[Tensors], Tensors]]  # what is written, and what it means
T5S: dict[str, Case] = {
    "t5xxl_fp16": (halves, lambda t: floats(halves(t))),
    "t5xxl_fp8_e4m3fn": (eighths, lambda t: floats(eighths(t))),
    "t5xxl_fp8_e4m3fn_scaled": (t5_scaled, t5_meant),
    "the whole T5": (whole_t5, dict),
    "the table under its other name": (embedded, dict),
    "as in a whole checkpoint": (prefixed, dict),
}


def t5(folder: Path) -> Tensors:
    found = weights(folder, "text_encoder_2")
    return {name: tensor for name, tensor in found.items() if name != "encoder.embed_tokens.weight"}


@pytest.mark.parametrize("case", T5S.values(), ids=T5S)
def test_t5(
    asked: Asked, flux: Path, tmp_path: Path, case: tuple[Callable[..., Tensors], Callable[..., Tensors]]
) -> None:
    written, meant = case
    file = save(tmp_path / "t5xxl.safetensors", written(t5(flux)))
    found = encoder(asked, "flux", flux, "text_encoder_2", file)
    assert same(found, meant(t5(flux)))
    assert torch.equal(found["encoder.embed_tokens.weight"], found["shared.weight"])


def gguf_name(name: str) -> str:
    """A T5's name as llama.cpp writes it, by its own table."""
    import gguf

    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.T5ENCODER, 8)
    return f"{table.get_name(name.removesuffix('.weight'))}.weight"


def test_t5_in_gguf(asked: Asked, flux: Path, tmp_path: Path) -> None:
    """Matrices in 8 bits (Q8_0), the rest in 32, as city96's t5-v1_1-xxl-encoder-gguf."""
    gguf = pytest.importorskip("gguf")
    file = tmp_path / "t5.gguf"
    writer, meant = gguf.GGUFWriter(file, "t5encoder"), {}
    for name, tensor in t5(flux).items():
        blocks = tensor.ndim == 2 and tensor.shape[1] % 32 == 0
        kind = gguf.GGMLQuantizationType.Q8_0 if blocks else gguf.GGMLQuantizationType.F32
        packed = gguf.quants.quantize(tensor.numpy(), kind)
        writer.add_tensor(gguf_name(name), packed, raw_dtype=kind)
        meant[name] = torch.from_numpy(gguf.quants.dequantize(packed, kind))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert same(encoder(asked, "flux", flux, "text_encoder_2", file), meant)


WRONG: dict[str, tuple[str, Callable[[Tensors], Tensors], str]] = {
    "of another width": (
        "text_encoder",
        lambda t: {name: torch.ones(*(2 * size for size in one.shape)) for name, one in t.items()},
        r"clip\.safetensors does not fit the settings of text_encoder in flux: .* is \d.*, not \d",
    ),
    "a layer short": (
        "text_encoder",
        lambda t: {name: one for name, one in t.items() if "layers.1." not in name},
        "is missing",
    ),
    "a layer more": (
        "text_encoder",
        lambda t: {**t, **{n.replace("layers.1.", "layers.2."): one for n, one in t.items() if "layers.1." in n}},
        r"it has no place for .*layers\.2",
    ),
    "a CLIP for the T5": ("text_encoder_2", lambda t: t, "does not fit the settings of text_encoder_2 in flux"),
    "a scale of no weight": ("text_encoder", lambda t: {**t, "x.scale_weight": torch.ones(())}, "a scale of no weight"),
}


@pytest.mark.parametrize("case", WRONG.values(), ids=WRONG)
def test_what_does_not_fit_is_refused_at_build(
    asked: Asked, flux: Path, tmp_path: Path, case: tuple[str, Callable[[Tensors], Tensors], str]
) -> None:
    name, spoil, message = case
    file = save(tmp_path / "clip.safetensors", spoil(weights(flux, "text_encoder")))
    with pytest.raises(UsageError, match=message):
        asked.checked("flux", flux, components={name: str(file)})


def test_the_names_of_llama_cpp_are_those_of_its_table(flux: Path) -> None:
    pytest.importorskip("gguf")
    names = t5(flux)
    assert own_names({gguf_name(name) for name in names}) == {gguf_name(name): name for name in names}
