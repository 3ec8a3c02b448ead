"""Each warning of a library is told in the user's words, kept for the log, or told as the library words it."""

from __future__ import annotations

import importlib.util
import logging
import re
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from diffpipe.core.item_warnings import ItemWarnings
from diffpipe.core.request import Request
from diffpipe.engine.loading import library_logs, library_words

# As the libraries of constraints.txt word them, with values in the places of their fields.
TOLD = {
    "The following part of your input was truncated because CLIP can only handle sequences up to 77 tokens: "
    "['of a fox']": "the prompt is longer than the 77 tokens that a text encoder reads; cut off: of a fox",
    "The following part of your input was truncated because `max_sequence_length` is set to  512 tokens: ['a b']": (
        "the prompt is longer than the 512 tokens that a text encoder reads; cut off: a b"
    ),
    "`height` and `width` have to be divisible by 16 but are 100 and 132. Dimensions will be resized accordingly": (
        "132 x 100 is no size that this pipeline makes (it must be divisible by 16): another is made"
    ),
    "`num_frames - 1` has to be divisible by 4. Rounding to the nearest number.": (
        "the number of frames is no multiple of 4 and one more: the nearest that is one is made"
    ),
    "Generation `height` and `width` have been adjusted to 512 and 768 to fit the model requirements.": (
        "the size asked for is none that this model makes: it makes 768 x 512"
    ),
    " negative_prompt is passed but classifier-free guidance is not enabled since true_cfg_scale <= 1": (
        "the negative prompt does nothing: --true-cfg-scale is not above 1"
    ),
    "true_cfg_scale is passed as 4.0, but classifier-free guidance is not enabled since no negative_prompt is "
    "provided.": "--true-cfg-scale 4.0 does nothing without a negative prompt",
    "guidance_scale is passed as 3.5, but ignored since the model is not guidance-distilled.": (
        "--guidance-scale 3.5 does nothing: the model was not made to take one"
    ),
    "`height` and `width` must be multiples of (16, 16) for proper patchification. Adjusting (100, 90) -> (96, 80).": (
        "(100, 90) is no size that this pipeline makes (multiples of (16, 16)): it makes (96, 80)"
    ),
    "`height` and `width` must be multiples of 32; rounding up from 100x90 to 128x96.": (
        "100x90 is no size that this pipeline makes (multiples of 32): it makes 128x96"
    ),
    "Guidance scale 7.0 is ignored for step-wise distilled models.": (
        "--guidance-scale 7.0 does nothing: the model is distilled"
    ),
    "joint_attention_kwargs ['sclae'] are not expected by FluxAttnProcessor and will be ignored.": (
        "sclae does nothing: FluxAttnProcessor does not know it"
    ),
    "The config attributes {'shift_terminal': 0.02} were passed to FlowMatchEulerDiscreteScheduler, but are not "
    "expected and will be ignored. Please verify your scheduler_config.json configuration file.": (
        "settings of a FlowMatchEulerDiscreteScheduler that this version of diffusers does not know do nothing: "
        "{'shift_terminal': 0.02}"
    ),
    "Some weights of AutoencoderKL were not initialized from the model checkpoint at /home/me/vae and are newly "
    "initialized: ['encoder.conv_in.bias']\nYou should probably TRAIN this model on a down-stream task": (
        "the files of a AutoencoderKL do not hold its weights (encoder.conv_in.bias): those are made up at random"
    ),
    "Some weights of the model checkpoint at /home/me/unet were not used when initializing UNet2DConditionModel: \n "
    "['extra.weight']": (
        "a UNet2DConditionModel has no place for some of the weights in its files (extra.weight): they are left out"
    ),
    "\x1b[1mCLIPTextModel LOAD REPORT\x1b[0m from: /models/sd/text_encoder\nKey                    | Status     | \n"
    "-----------------------+------------+-\ntext_model.final.bias | \x1b[31mMISSING\x1b[0m |\n\nNotes:": (
        "the files of a CLIPTextModel do not hold its weights (text_model.final.bias and maybe more): those are made "
        "up at random"
    ),
    "T5EncoderModel LOAD REPORT from: /models/t5\nKey | Status | |\n----+----+-+-\n"
    "decoder.block.0.weight | UNEXPECTED | |\ntext.position_ids | UNEXPECTED | |\n\nNotes:": (
        "a T5EncoderModel has no place for some of the weights in its files (decoder.block.0.weight and maybe more): "
        "they are left out"
    ),
    "You are using a model of type `clip` to instantiate a model of type `clip_text_model`. This may be": (
        "the settings of a component are those of a clip, loaded as a clip_text_model: the result may be poor"
    ),
}
PADDED = "The following part of your input was truncated because CLIP can only handle sequences up to 77 tokens: "
KEPT = (
    "CLIPTextModel LOAD REPORT from: /models/sd/text_encoder\nKey | Status | |\n----+----+-+-\n"
    "text_model.embeddings.position_ids | UNEXPECTED | |\n\nNotes:",
    "Token indices sequence length is longer than the specified maximum sequence length for this model (99 > 77). "
    "Running this sequence through the model will result in indexing errors",
    "Potential NSFW content was detected in one or more images. A black image will be returned instead.",
    "There are modules in AutoencoderKL that should be kept in float32: []. Casting directly with `to()` can lead",
)


@pytest.mark.parametrize("text", TOLD)
def test_a_known_warning_is_told_in_the_users_words(text: str) -> None:
    assert library_words.sort("diffusers", text) == TOLD[text]


@pytest.mark.parametrize("text", KEPT)
def test_what_changes_nothing_is_kept_for_the_log(text: str) -> None:
    assert library_words.sort("transformers", text) is None


def test_what_no_row_knows_is_told_as_the_library_words_it() -> None:
    assert library_words.sort("peft", "Weights  were\nswapped.") == "peft says: Weights were swapped."


def test_a_long_one_is_cut() -> None:
    said = library_words.sort("peft", "word " * 500)
    assert said is not None
    assert len(said) <= library_words.LONGEST + len("peft says: ")
    assert said.endswith("…")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("at /home/anna/models/x.safetensors: odd", "at x.safetensors: odd"),
        ("at 'C:\\Users\\anna\\x.bin'", "at 'x.bin'"),
        ("at ~/models/x.bin", "at x.bin"),
        ("see https://example.org/a/b", "see https://example.org/a/b"),
        ("<Thing at 0x7f3a9c001234>", "<Thing at 0x…>"),
        ("\x1b[31mred\x1b[0m\x07 and \u202eback", "red and back"),
        ("w/h and 1/2", "w/h and 1/2"),
        ("with hf_abcdefghijkl", "with [token]"),
    ],
)
def test_what_is_of_this_machine_or_moment_is_left_out(text: str, shown: str) -> None:
    assert library_words.in_a_line(text) == shown


def test_only_deprecations_are_for_programmers() -> None:
    assert library_words.sort("diffusers", "odd", "FutureWarning") is None
    assert library_words.sort("diffusers", "odd", "UserWarning") == "diffusers says: odd"


# Words of rows that stand in no one place of the sources: other rows' texts are found there.
@pytest.mark.pinned
def test_every_row_finds_what_a_library_says() -> None:
    """A row whose words no library has any more is dead, and what came in their place is told raw."""
    sources = [re.sub(r'"\s*\n\s*f?"', "", source) for source in library_sources()]
    dead = [row.pattern for row in library_words.ROWS if row.pattern and not any(map(parts_of(row), sources))]
    assert dead == []


def library_sources() -> Iterator[str]:
    for name in ("diffusers", "transformers"):
        found = importlib.util.find_spec(name)
        assert found
        assert found.origin
        for path in Path(found.origin).parent.rglob("*.py"):
            text = path.read_text(encoding="utf-8", errors="replace")
            if "warn" in text or "REPORT" in text:
                yield text


NOT_IN_PYTHON = ("torch", "Failed to load ", "TypedStorage", "NumPy", "Some parameters are on the meta device")


def parts_of(row: library_words.Row):  # type: ignore[no-untyped-def]
    """Whether a source has the longest run of plain words of a pattern."""
    runs = re.findall(r"[A-Za-z][A-Za-z' -]{9,}", re.sub(r"\(\?.*?\)|\\[a-zA-Z]", "#", row.pattern))
    longest = max(runs, key=len, default="")
    return lambda source: longest in source or any(words in row.pattern for words in NOT_IN_PYTHON)


@pytest.fixture
def heard(caplog: pytest.LogCaptureFixture) -> Iterator[list[str]]:
    """What is told while a test runs."""
    said: list[str] = []

    class Kept(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            said.append(record.getMessage())

    kept = Kept(logging.WARNING)
    logger = logging.getLogger("diffpipe")
    logger.addHandler(kept)
    with warnings.catch_warnings():
        library_logs.listen()
        yield said
    logger.removeHandler(kept)


def test_every_way_that_a_library_warns_is_heard(heard: list[str]) -> None:
    import numpy as np

    for name in ("diffusers.pipelines.x", "transformers.modeling_utils", "peft.tuners", "accelerate.hooks"):
        logging.getLogger(name).warning("%s is odd", name)
    logging.getLogger("diffusers.x").error("an error that it recovered from")
    np.array([1.0]) / np.array([0.0])
    assert heard == [
        "diffusers says: diffusers.pipelines.x is odd",
        "transformers says: transformers.modeling_utils is odd",
        "peft says: peft.tuners is odd",
        "accelerate says: accelerate.hooks is odd",
        "diffusers says: an error that it recovered from",
        "Python says: divide by zero encountered in divide",
    ]


def test_what_is_said_once_a_process_is_said_for_each_item(heard: list[str]) -> None:
    from transformers.utils import logging as theirs

    logger = theirs.get_logger("transformers.models.odd")
    for _ in range(2):
        library_logs.hear_again()
        for _ in range(3):
            logger.warning_once("this is odd")
            warnings.warn("and that", stacklevel=1)
    assert heard.count("transformers says: this is odd") == 2
    assert len(heard) == 2 + 6
    assert sys.modules["transformers"]


def test_of_prompts_encoded_together_each_item_hears_of_its_own() -> None:
    """Shorter prompts are padded with the tokenizer's end, or "!" (SDXL's second): there is nothing of theirs."""
    group = [Request(index=0, seed=seed, arguments={}) for seed in range(3)]
    ends = ["in the snow", "<|endoftext|><|endoftext|>", "with a hat!!!!!!!!"]
    with warnings.catch_warnings(), ItemWarnings(group=group) as collected:
        library_logs.listen()
        logging.getLogger("diffusers.pipelines.x").warning(f"{PADDED}{ends}")
    said = "the prompt is longer than the 77 tokens that a text encoder reads; cut off: "
    assert [collected.of(request) for request in group] == [(f"{said}in the snow",), (), (f"{said}with a hat",)]


ODD = ["0x" * 50_000, "a LOAD REPORT" * 9_000, "`height` and `width` must be multiples of 1; " * 3_000, "x|" * 50_000]


@pytest.mark.parametrize("text", [*ODD, f"{PADDED}[" * 3_000, PADDED + "[" * 50_000], ids=range(6))
def test_no_text_takes_long(text: str) -> None:
    """A pattern that goes back and forth would take minutes here."""
    assert len(library_words.sort("peft", text) or "") < 1_000
    assert library_words.cut_off(text) == []


@pytest.mark.parametrize("end", ["", "[", "['a', ", "[" * 300, "not a list"])
def test_a_list_that_is_none_is_told_as_it_is(end: str) -> None:
    assert library_words.cut_off(PADDED + end) == []
