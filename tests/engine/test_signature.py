"""diffpipe.engine.classes.signature: pipelines' `__call__` as Flags."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any, List, Literal, Optional, Union  # noqa: UP035

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.catalog.arguments import UNCALLABLE
from diffpipe.catalog.rows import PipelineType
from diffpipe.core.flag import Flag
from diffpipe.core.names import IDENTIFIER
from diffpipe.core.parsing import Fields, Misfit
from diffpipe.engine.classes.docstrings import docstring_arguments
from diffpipe.engine.classes.limits import enforced_limits
from diffpipe.engine.classes.signature import (
    read_flags,
    tuple_arguments,
    unfit_arguments,
    why_uncallable,
)

diffusers = pytest.importorskip("diffusers")
PIL_Image = pytest.importorskip("PIL.Image")
torch = pytest.importorskip("torch")

SIZE = {"kind": "integer", "minimum": 8, "multiple_of": 8}
COUNT = {"kind": "integer", "minimum": 1}
FRACTION = {"kind": "number", "minimum": 0, "maximum": 1}
GUIDANCE = {"kind": "number", "minimum": 0}
PICTURES = {"kind": "image", "many": True}


def facts(pipeline_class: type, row: PipelineType | None = None) -> dict[str, dict[str, Any]]:
    """The flags by name, in order, without their help."""
    flags = [flag.to_json() for flag in read_flags(pipeline_class, row)]
    return {flag.pop("name"): {k: v for k, v in flag.items() if k != "help"} for flag in flags}


def same(found: dict[str, Any], expected: dict[str, Any]) -> None:
    assert found == expected
    assert list(found) == list(expected)


def test_flux_has_every_argument_that_fits_and_no_other() -> None:
    expected = {
        "prompt": {"kind": "text", "required": True},
        "prompt_2": {"kind": "text"},
        "negative_prompt": {"kind": "text"},
        "negative_prompt_2": {"kind": "text"},
        "true_cfg_scale": {**GUIDANCE, "default": 1.0},
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": {**COUNT, "default": 28},
        "sigmas": {"kind": "number", "many": True, "scalar": False},
        "guidance_scale": {**GUIDANCE, "default": 3.5},
        "num_images_per_prompt": {**COUNT, "default": 1},
        "joint_attention_kwargs": {"kind": "json"},
        "max_sequence_length": {**COUNT, "default": 512, "maximum": 512},
    }
    same(facts(diffusers.FluxPipeline), expected)


def test_flux_inpaint_needs_an_image_and_a_mask() -> None:
    expected = {
        "prompt": {"kind": "text", "required": True},
        "prompt_2": {"kind": "text"},
        "negative_prompt": {"kind": "text"},
        "negative_prompt_2": {"kind": "text"},
        "true_cfg_scale": {**GUIDANCE, "default": 1.0},
        "image": {**PICTURES, "required": True},
        "mask_image": {"kind": "mask", "required": True},
        "height": SIZE,
        "width": SIZE,
        "padding_mask_crop": {"kind": "integer", "minimum": 0},
        "strength": {**FRACTION, "default": 0.6},
        "num_inference_steps": {**COUNT, "default": 28},
        "sigmas": {"kind": "number", "many": True, "scalar": False},
        "guidance_scale": {**GUIDANCE, "default": 7.0},
        "num_images_per_prompt": {**COUNT, "default": 1},
        "joint_attention_kwargs": {"kind": "json"},
        "max_sequence_length": {**COUNT, "default": 512, "maximum": 512},
    }
    same(facts(diffusers.FluxInpaintPipeline), expected)


def test_stable_diffusion() -> None:
    expected = {
        "prompt": {"kind": "text", "required": True},
        "height": SIZE,
        "width": SIZE,
        "num_inference_steps": {**COUNT, "default": 50},
        "timesteps": {"kind": "integer", "many": True, "scalar": False},
        "sigmas": {"kind": "number", "many": True, "scalar": False},
        "guidance_scale": {**GUIDANCE, "default": 7.5},
        "negative_prompt": {"kind": "text"},
        "num_images_per_prompt": {**COUNT, "default": 1},
        "eta": {**FRACTION, "default": 0.0},
        "cross_attention_kwargs": {"kind": "json"},
        "guidance_rescale": {**FRACTION, "default": 0.0},
        "clip_skip": COUNT,
    }
    same(facts(diffusers.StableDiffusionPipeline), expected)


def test_help_is_the_docstrings_in_plain_text() -> None:
    found = {flag.name: flag.help for flag in read_flags(diffusers.FluxPipeline)}

    assert found["prompt"] == "The prompt or prompts to guide the image generation."
    assert not [name for name in found if "ip_adapter" in name]
    assert found["max_sequence_length"] == "Maximum sequence length to use with the prompt."
    assert found["num_inference_steps"] == (
        "The number of denoising steps. More denoising steps usually lead to a higher quality image at the expense of "
        "slower inference."
    )


@pytest.mark.parametrize(
    ("class_name", "argument", "expected"),
    [
        ("WanImageToVideoPipeline", "height", {"kind": "integer", "default": 480, "minimum": 16, "multiple_of": 16}),
        ("WanImageToVideoPipeline", "last_image", {"kind": "image"}),
        ("WanVideoToVideoPipeline", "video", {"kind": "video", "required": True}),
        ("WanVACEPipeline", "mask", {"kind": "video"}),
        ("WanVACEPipeline", "reference_images", {"kind": "image", "many": True, "scalar": False}),
        ("FluxFillPipeline", "mask_image", {"kind": "mask", "required": True}),
        ("StableAudioPipeline", "initial_audio_waveforms", {"kind": "audio"}),
        (
            "FluxControlNetPipeline",
            "controlnet_conditioning_scale",
            {"kind": "number", "many": True, "default": 1.0},
        ),
        (
            "StableDiffusionXLPipeline",
            "crops_coords_top_left",
            {"kind": "integer", "many": True, "scalar": False, "default": [0, 0]},
        ),
        ("StableDiffusionGLIGENPipeline", "gligen_boxes", {"kind": "json"}),
        (
            "HunyuanVideoFramepackPipeline",
            "sampling_type",
            {"kind": "choice", "default": "inverted_anti_drifting", "choices": ["vanilla", "inverted_anti_drifting"]},
        ),
    ],
)
def test_arguments_of_other_families(class_name: str, argument: str, expected: dict[str, Any]) -> None:
    assert facts(getattr(diffusers, class_name))[argument] == expected


def test_one_class_is_read_well_under_50_ms() -> None:
    read_flags(diffusers.FluxPipeline)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        read_flags(diffusers.FluxPipeline)
        times.append(time.perf_counter() - start)
    assert min(times) < 0.05


# --- Annotations -----------------------------------------------------------------------------------------------------


class Sampling(str, Enum):  # noqa: UP042
    FIRST = "first"
    LAST = "last"


Pictures = Union[PIL_Image.Image, torch.Tensor, List[PIL_Image.Image]]  # noqa: UP006, UP007


NAMES = {
    "Any": Any,
    "List": List,  # noqa: UP006
    "Literal": Literal,
    "Optional": Optional,
    "Path": Path,
    "PIL_Image": PIL_Image,
    "Pictures": Pictures,
    "Sampling": Sampling,
    "Union": Union,
    "torch": torch,
}


def pipeline(signature: str, doc: str = "") -> type:
    """A class whose `__call__` has this signature, its annotations live unless they are written as text."""
    code = compile(f"def __call__(self, {signature}): pass", "made-up", "exec", dont_inherit=True)
    scope = dict(NAMES)
    exec(code, scope)
    scope["__call__"].__doc__ = doc
    return type("MadeUpPipeline", (), {"__call__": scope["__call__"]})


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("x: int", {"kind": "integer", "required": True}),
        ("x: Optional[int] = None", {"kind": "integer"}),
        ("x: int | None = 3", {"kind": "integer", "default": 3}),
        ("x: 'Optional[int]' = None", {"kind": "integer"}),
        ("x: 'int | None' = None", {"kind": "integer"}),
        ("x: 'Missing | list[float] | None' = None", {"kind": "number", "many": True, "scalar": False}),
        ("x: \"'PIL.Image.Image' | torch.Tensor | None\" = None", {"kind": "image"}),
        ("x: 'PipelineImageInput | None' = None", {"kind": "image", "many": True}),
        ("x: 'Pictures' = None", {"kind": "image", "many": True}),
        ("x: Pictures = None", {"kind": "image", "many": True}),
        ("x: PIL_Image.Image | str | Path", {"kind": "image", "required": True}),
        ("x: Union[float, List[float]] = 1.0", {"kind": "number", "many": True, "default": 1.0}),
        ("x: list[float, torch.Tensor] | None = None", {"kind": "number", "many": True, "scalar": False}),
        ("x: torch.Tensor | list[int] | int | None = None", {"kind": "integer", "many": True}),
        ("x: tuple[int, int] = (0, 1)", {"kind": "integer", "many": True, "scalar": False, "default": [0, 1]}),
        ("x: list = [1, 2]", {"kind": "integer", "many": True, "scalar": False, "default": [1, 2]}),
        ("x: str | list[str] = None", {"kind": "text"}),
        ("x: list[str] = None", {"kind": "text", "many": True, "scalar": False}),
        ("x: bool | list[bool] | None = False", {"kind": "boolean", "default": False}),
        ("x: Literal['a', 'b'] = 'a'", {"kind": "choice", "default": "a", "choices": ["a", "b"]}),
        ("x: \"Optional[Literal['a', 'b']]\" = None", {"kind": "choice", "choices": ["a", "b"]}),
        ("x: Sampling = Sampling.LAST", {"kind": "choice", "default": "last", "choices": ["first", "last"]}),
        ("x: dict[str, Any] | None = None", {"kind": "json"}),
        ("x: list[list[float]] = None", {"kind": "json"}),
        ("x: dict = {0: 0.5}", {"kind": "json", "default": {"0": 0.5}}),
        ("x=2.5", {"kind": "number", "default": 2.5}),
        ("x=False", {"kind": "boolean", "default": False}),
        ("x: float = float('inf')", {"kind": "number"}),
    ],
)
def test_annotations(signature: str, expected: dict[str, Any]) -> None:
    assert facts(pipeline(signature)) == {"x": expected}


@pytest.mark.parametrize(
    "signature",
    [
        "x: torch.Tensor",
        "x: 'list[torch.FloatTensor] | None' = None",
        "x: 'Callable[[int, int], None] | None' = None",
        "x: 'Missing' = None",
        "x: '][' = None",
        "x=None",
        "*args, **kwargs",
        "latents: Pictures = None",
        "ip_adapter_image_embeds: Pictures = None",
        "callback_steps: int = 1",
        "output_type: str = 'pil'",
        "return_dict: bool = True",
        "generator: Any = None",
        "_private: bool = True",
    ],
)
def test_what_does_not_fit_a_command_line(signature: str) -> None:
    assert read_flags(pipeline(signature)) == ()


@pytest.mark.parametrize(
    ("signature", "kind"),
    [
        ("mask: Pictures", "mask"),
        ("video: list[PIL_Image.Image]", "video"),
        ("mask_video: list[PIL_Image.Image]", "video"),
        ("video: list[list[PIL_Image.Image]]", "video"),
        ("src_audio: Optional[torch.Tensor] = None", "audio"),
        ("image: Any | list[Any] | None = None", "image"),
        ("num_frames: int", "integer"),
        ("input_images_mask: int | list[int] = None", "integer"),
    ],
)
def test_media_are_told_by_type_and_name(signature: str, kind: str) -> None:
    (flag,) = read_flags(pipeline(signature))
    assert flag.kind == kind


def test_the_docstring_hints_at_a_type_only_where_nothing_else_does() -> None:
    doc = "Args:\n    x (`list[float]`, *optional*): Levels.\n    y (`str`): Not a text.\n"
    assert facts(pipeline("x=None, y: int = None", doc)) == {
        "x": {"kind": "number", "many": True, "scalar": False},
        "y": {"kind": "integer"},
    }


def test_arguments_that_must_stay_tuples() -> None:
    made = pipeline("a: tuple[int, int] | None = None, b: list[int] = None, c: int | tuple[int, int] = 1")
    assert tuple_arguments(made) == {"a"}


# --- Rows ------------------------------------------------------------------------------------------------------------


def test_a_row_has_the_last_word() -> None:
    made = pipeline("prompt: str, width: int = 512, depth: torch.Tensor = None, image: Pictures = None")
    row = PipelineType(
        "t",
        "MadeUpPipeline",
        defaults={"width": 768, "prompt": "a fox"},
        flags={"width": {"multiple_of": 64}, "depth": {"kind": "image"}, "tile": {"kind": "integer", "default": 1024}},
    )
    expected = {
        "prompt": {"kind": "text", "default": "a fox"},
        "width": {"kind": "integer", "default": 768, "minimum": 8, "multiple_of": 64},
        "depth": {"kind": "image"},
        "image": PICTURES,
        "tile": {"kind": "integer", "default": 1024},
    }
    same(facts(made, row), expected)


@pytest.mark.parametrize("fields", [{"defaults": {"hight": 8}}, {"flags": {"hight": {"multiple_of": 8}}}])
def test_a_row_that_names_no_argument_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="MadeUpPipeline has no flag for hight"):
        read_flags(pipeline("height: int = 8"), PipelineType("t", "MadeUpPipeline", **fields))


# --- Docstrings ------------------------------------------------------------------------------------------------------

SPLICED = """
        Call it.

        Args:
            height (`int`, *optional*, defaults to self.unet.config.sample_size
                * self.vae_scale_factor):
                The **height** in pixels, see the [paper](https://example.com/a).

                A second paragraph.
            image (`A`, `B`),
                `list[A]`: An input for [`~models.Thing`], ``code``, *e.g.* Prompts. Second one.
            name: (`str`): Said at once. May be passed as `prompt_embeds`.
            twice (`int`):
                twice (`int`): Said twice.
            many (`int`): One of:
                - `a`: first
                - `b`: second

    Examples:
        >>> height (`int`): not this

        Returns:
            `tuple`: nothing.
"""


def test_a_docstring_with_a_less_indented_block_spliced_in() -> None:
    helps = {name: found.help for name, found in docstring_arguments(SPLICED).items()}
    assert helps == {
        "height": "The height in pixels, see the paper.",
        "image": "An input for Thing, code, e.g. Prompts. Second one.",
        "name": "Said at once.",
        "twice": "Said twice.",
        "many": "One of:",
    }


def test_long_help_ends_with_a_sentence_or_says_that_it_was_cut() -> None:
    doc = f"Args:\n    a (`int`): {'Word ' * 20}end. {'More ' * 40}end.\n    b (`int`): {'endless ' * 90}\n"
    found = docstring_arguments(doc)
    assert found["a"].help == "Word " * 20 + "end."
    assert found["b"].help.endswith("endless …")
    assert len(found["b"].help) <= 202


LINES = st.sampled_from(
    ["Args:", "  Args:", "x (`int`", "x (`int`):", "    y: (", "`z` (a)) :", "\t- w", "[`~", "](", ""]
)


@given(st.lists(LINES | st.text(max_size=40), max_size=12).map("\n".join))
def test_no_docstring_raises(docstring: str) -> None:
    for name, found in docstring_arguments(docstring).items():
        assert name.strip()
        assert found.help == " ".join(found.help.split())
        assert len(found.help) <= 300


@given(st.text(alphabet="intlsfoarX[]|, .'\"()*", max_size=30))
def test_no_annotation_raises(text: str) -> None:
    made = pipeline("x=None")
    made.__call__.__annotations__["x"] = text  # type: ignore[attr-defined]
    assert len(read_flags(made)) <= 1


# --- Limits ----------------------------------------------------------------------------------------------------------


class Checked:
    def __call__(
        self,
        prompt: str | None = None,
        prompt_embeds: Any = None,
        height: int = 32,
        strength: float = 0.5,
        guidance_scale: float = 5.0,
        max_sequence_length: int = 128,
        image: Pictures | None = None,
        video: list[PIL_Image.Image] | None = None,
        steps: int | None = None,
        *,
        layers: int,
    ) -> None: ...

    def check_inputs(  # type: ignore[no-untyped-def]
        self, prompt, prompt_embeds, height, strength, guidance_scale, max_sequence_length, image, video, steps, layers
    ):
        if height % 32 != 0:
            raise ValueError
        if strength < 0.1 or strength > 0.9:
            raise ValueError
        if guidance_scale > 1 and self.distilled:
            raise ValueError
        if guidance_scale > 2:
            print("a warning")
        if max_sequence_length is not None and max_sequence_length > 256:
            raise ValueError
        if prompt is not None and prompt_embeds is not None:
            raise ValueError
        elif prompt is None and prompt_embeds is None:  # noqa: RET506
            raise TypeError
        if image is None and video is None:
            raise ValueError
        if steps is None or layers is None:
            raise ValueError


def test_limits_come_from_checks_that_always_raise() -> None:
    same(
        facts(Checked),
        {
            "prompt": {"kind": "text", "required": True},
            "height": {"kind": "integer", "default": 32, "minimum": 32, "multiple_of": 32},
            "strength": {"kind": "number", "default": 0.5, "minimum": 0.1, "maximum": 0.9},
            "guidance_scale": {"kind": "number", "default": 5.0, "minimum": 0},
            "max_sequence_length": {"kind": "integer", "default": 128, "minimum": 1, "maximum": 256},
            "image": PICTURES,
            "video": {"kind": "video"},
            # `__call__` may fill in a number before it checks, so None is not known to be refused.
            "steps": {"kind": "integer"},
            "layers": {"kind": "integer", "required": True},
        },
    )


@pytest.mark.parametrize(
    ("change", "accepted"),
    [({}, True), ({"height": 24}, False), ({"width": 8}, False), ({"prompt": None}, False), ({"image": None}, False)],
)
def test_the_pipeline_itself_rejects_what_the_flags_reject(change: dict[str, Any], accepted: bool) -> None:
    pipe = SimpleNamespace(config=SimpleNamespace(boundary_ratio=None), _callback_tensor_inputs=())
    good = {"prompt": "a", "negative_prompt": None, "image": PIL_Image.new("RGB", (16, 16)), "height": 16, "width": 16}
    flags = {flag.name: flag for flag in read_flags(diffusers.WanImageToVideoPipeline)}
    arguments = {**good, **change}

    def check() -> bool:
        try:
            diffusers.WanImageToVideoPipeline.check_inputs(pipe, **arguments)
        except ValueError:
            return False
        return True

    fine = all(arguments[side] % (flags[side].multiple_of or 1) == 0 for side in ("height", "width"))
    given = all(arguments[name] is not None for name, flag in flags.items() if flag.required)
    assert check() == (fine and given) == accepted


def test_a_class_without_checks_has_no_limits() -> None:
    assert enforced_limits(pipeline("x: int")) == ({}, ())


# --- Flags as data ---------------------------------------------------------------------------------------------------

JSON = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()


def flags() -> Iterator[Flag]:
    yield from read_flags(diffusers.FluxInpaintPipeline)
    yield from read_flags(diffusers.HunyuanVideoFramepackPipeline)


def test_flags_survive_json() -> None:
    read = list(flags())
    assert [Flag.from_json(Fields(json.loads(json.dumps(flag.to_json())))) for flag in read] == read


@given(
    st.builds(
        Flag,
        name=st.from_regex(r"[a-z]\w{0,9}", fullmatch=True) | st.text(min_size=1),
        kind=st.sampled_from(["text", "integer", "choice", "mask", "json"]),
        many=st.booleans(),
        scalar=st.booleans(),
        required=st.booleans(),
        default=JSON | st.lists(JSON),
        help=st.text(),
        minimum=st.none() | st.integers(-5, 5),
        multiple_of=st.none() | st.integers(1, 64),
        choices=st.lists(st.text()).map(tuple),
    )
)
def test_any_flag_survives_json_or_is_refused(flag: Flag) -> None:
    written = Fields(json.loads(json.dumps(flag.to_json())))
    if IDENTIFIER.fullmatch(flag.name) and not flag.problem():
        assert Flag.from_json(written) == flag
    else:
        with pytest.raises(Misfit):
            Flag.from_json(written)


# --- What no command line can call -----------------------------------------------------------------------------------


def test_what_is_left_without_a_flag() -> None:
    found = unfit_arguments(diffusers.LTXConditionPipeline)
    assert found == {
        "conditions": "object",
        "latents": "tensor",
        "prompt_embeds": "tensor",
        "prompt_attention_mask": "tensor",
        "negative_prompt_embeds": "tensor",
        "negative_prompt_attention_mask": "tensor",
    }


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("FluxPipeline", ""),
        ("LTXConditionPipeline", ""),
        ("KandinskyPipeline", "needs image_embeds, negative_image_embeds, which another program must compute"),
        (
            "StableDiffusionPix2PixZeroPipeline",
            "needs source_embeds, target_embeds, which another program must compute",
        ),
        ("LEditsPPPipelineStableDiffusion", "needs a call of its invert() first"),
    ],
)
def test_why_a_class_cannot_be_called(name: str, reason: str) -> None:
    assert why_uncallable(getattr(diffusers, name)) == reason


def test_a_row_can_take_a_flag_away() -> None:
    row = PipelineType("t", "MadeUpPipeline", flags={"width": None, "frames": {"multiple_of": 8, "remainder": 1}})
    found = facts(pipeline("prompt: str, width: int = 512, frames: int = 9"), row)
    assert set(found) == {"prompt", "frames"}
    assert found["frames"] == {"kind": "integer", "default": 9, "multiple_of": 8, "remainder": 1}


def test_every_reason_is_of_a_class_there_is() -> None:
    assert [name for name in UNCALLABLE if not hasattr(diffusers, name)] == []


@pytest.mark.parametrize(
    ("name", "mode"),
    [("QwenImage21Pipeline", "RGBA"), ("QwenImageLayeredPipeline", "RGBA"), ("FluxKontextPipeline", "")],
)
def test_pictures_keep_their_alpha_where_the_pipeline_takes_it(name: str, mode: str) -> None:
    (image,) = (flag for flag in read_flags(getattr(diffusers, name)) if flag.name == "image")
    assert image.mode == mode
