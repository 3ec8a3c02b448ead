"""What becomes of each warning of a library: told in the user's words, or kept for the log. A table, read by sort().

A warning that no row knows is told as the library words it: "diffusers says: ...".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from textwrap import shorten

from ...core.access_tokens import redacted
from ...core.heard import quoted
from ...core.placeless import placeless

LONGEST = 400  # characters of a warning that no row knows
LONGEST_READ = 4000  # characters of a warning that are looked at: patterns must not take long on what comes from a file
REPORT = " LOAD REPORT"


@dataclass(frozen=True)
class Row:
    """Warnings that say the same: a pattern that is found in them, and what becomes of them.

    `words`: what the user is told, in which {0} stands for the pattern's first group; "" where it is kept for the log,
    because of `why`. `library` and `category` (of Python's warnings): "" for any.
    """

    pattern: str
    words: str = ""
    why: str = ""
    library: str = ""
    category: str = ""


FOR_PROGRAMMERS = "names of functions that will change: nothing that a user of a command line can heed"
DIFFPIPE = "diffpipe tells of it itself, or refuses it"
NO_MATTER = "it changes no result"

ROWS: Sequence[Row] = (
    # What was given and does not count as it is.
    Row(
        r"following part of your input was truncated because .*?(\d+) tokens: (.*)",
        "the prompt is longer than the {0} tokens that a text encoder reads; cut off: {1}",
    ),
    Row(
        r"input was truncated because `max_sequence_length` is set to (\d+) input token nums ?: (\d+)",
        "the prompt is longer than --max-sequence-length {0}: it has {1} tokens, and was cut off",
    ),
    Row(
        r"`height` and `width` (?:have|need) to be (divisible by|one of) (.+?),? but are (\d+) and (\d+)",
        "{3} x {2} is no size that this pipeline makes (it must be {0} {1}): another is made",
    ),
    Row(
        r"`height` and `width` must be multiples of ([\d, ()]+)(?: for proper patchification)?[;.] "
        r"(?:Adjusting|rounding up from) ([\dx, ()]+?) (?:->|to) ([\dx, ()]+)",
        "{1} is no size that this pipeline makes (multiples of {0}): it makes {2}",
    ),
    Row(
        r"Generation `height` and `width` have been adjusted to (\d+) and (\d+)",
        "the size asked for is none that this model makes: it makes {1} x {0}",
    ),
    Row(r"Video height and width should be divisible by (\d+)", "the size is no multiple of {0}: another is made"),
    Row(
        r"`(?:num_frames|segment_frame_length) - 1` has to be divisible by (\d+)",
        "the number of frames is no multiple of {0} and one more: the nearest that is one is made",
    ),
    Row(
        r"`num_frames` has to be of the form (.+?) for the video VAE; rounding (\d+) up to (\d+)",
        "{1} frames cannot be made (only {0}): {2} are",
    ),
    Row(
        r"Video length expected to be of the form `(.+?)` but is (\d+)\. Truncating to (\d+)",
        "a video of {1} frames cannot be taken (only {0}): its first {2} are",
    ),
    Row(
        r"negative_prompt is passed but classifier-free guidance is not enabled since true_cfg_scale <= 1",
        "the negative prompt does nothing: --true-cfg-scale is not above 1",
    ),
    Row(
        r"`negative_prompt` is (?:ignored because|provided but) the guider is disabled",
        "the negative prompt does nothing: guidance is off",
    ),
    Row(
        r"true_cfg_scale is passed as (\S+), but classifier-free guidance is not enabled since no negative_prompt",
        "--true-cfg-scale {0} does nothing without a negative prompt",
    ),
    Row(
        r"guidance_scale is passed as (\S+), but ignored since the model is not guidance-distilled",
        "--guidance-scale {0} does nothing: the model was not made to take one",
    ),
    Row(
        r"Guidance scale (\S+) is ignored for (step-wise distilled|turbo)",
        "--guidance-scale {0} does nothing: the model is distilled",
    ),
    Row(
        r"(?:joint_|cross_)?attention(?:_processor)?_kwargs (.+?) are not expected by (\S+) and will be ignored",
        "{0} does nothing: {1} does not know it",
    ),
    Row(r"Passing `scale` (?:to|via) .*?`(\w+)`", "scale in --{0} does nothing: a LoRA's scale is set at the build"),
    Row(
        r"does not support using a list of generators",
        "this pipeline takes one seed a call: leave --batch-size out to have every item's seed count",
    ),
    Row(
        r"custom timestep schedule",
        "the timesteps that were given are not those that this model was trained for: the result may be poor",
    ),
    Row(r"`eta` should be between 0 and 1", "--eta is meant to be between 0 and 1: the result may be poor"),
    Row(
        r"aspect ratio of the mask does not match the aspect ratio of the output",
        "the mask has other proportions than the result: it is stretched",
    ),
    Row(
        r"input images far exceed the default resolution",
        "the picture is far larger than those that the model was trained with: choose a smaller --width and --height",
    ),
    Row(
        r"input waveform is (shorter|longer) \((.+?)\) than the required audio length \((.+?)\)",
        "the sound is {0} than the model takes ({1}; {2}): it is padded, or cut",
    ),
    Row(
        r"Reshaping (?:prev segment )?(\w+)(?: image| cond video| video)? from (\(.+?\)) to (\(.+?\))",
        "the {0} input is stretched from {1} to {2} (height, width)",
    ),
    Row(
        r"starting latent index (\d+) of condition (\d+) is too big",
        "condition {1} begins after the last frame: it is left out",
    ),
    Row(r"Both `num_inference_steps`.* and `timesteps`", "--num-inference-steps does nothing beside --timesteps"),
    # Weights and settings.
    # What transformers calls its LOAD REPORT, as `_report` has it.
    Row(
        r"^(\S+) LOAD REPORT: (?:MISSING|MISMATCH|CONVERSION): (\S+)",
        "the files of a {0} do not hold its weights ({1} and maybe more): those are made up at random",
    ),
    Row(
        r"^(\S+) LOAD REPORT: UNEXPECTED: (\S+)",
        "a {0} has no place for some of the weights in its files ({1} and maybe more): they are left out",
    ),
    Row(r"^\S+ LOAD REPORT: nothing", why="buffers that older versions of transformers stored"),
    Row(
        r"Some weights of (\w+) were not initialized from the model checkpoint .*?newly initialized"
        r"(?: because the shapes did not match)?: ?\[?(.+?)\]? ?You should probably",
        "the files of a {0} do not hold its weights ({1}): those are made up at random",
    ),
    Row(
        r"weights of the model checkpoint .*?were not used when initializing (\w+): (.*)",
        "a {0} has no place for some of the weights in its files ({1}): they are left out",
    ),
    Row(
        r"The config attributes (\{.*?\}) were passed to (\w+), but are not expected",
        "settings of a {1} that this version of diffusers does not know do nothing: {0}",
    ),
    Row(
        r"A mixture of (\S+) and non-\S+ filenames will be loaded",
        "the variant {0} lacks some components' weights: theirs are those without a variant",
    ),
    Row(
        r"You are using a model of type `?(\w+)`? to instantiate a model of type `?(\w+)",
        "the settings of a component are those of a {0}, loaded as a {1}: the result may be poor",
    ),
    Row(
        r"tokenizer you are loading .*incorrect regex",
        "a tokenizer splits words other than its model was trained with: take a newer file of it",
    ),
    Row(
        r"dtype=torch\.float16` cannot run with `cpu`",
        "float16 on a CPU is slow, and lacks some operations: --dtype bfloat16 or float32 is safer",
    ),
    Row(r"modules in \w+ that should be kept in float32: \[\]", why="there are none"),
    # What diffpipe tells of by itself.
    Row(r"Potential NSFW content|potentially unsafe|safety checker", why=DIFFPIPE),
    Row(r"Token indices sequence length is longer", why="pipelines cut what is too long, and say so"),
    Row(r"No LoRA keys associated to|[Uu]nsupported keys for|Lora weight dict for adapter", why=DIFFPIPE),
    Row(r"Expected types for \w+: ", why="what does not fit is refused at the build"),
    Row(r"Some parameters are on the meta device", why="placements are diffpipe's own"),
    # What changes nothing.
    Row(
        r"Failed to load |Detected no triton|Skipping import of cpp extensions",
        why="kernels of devices that are not here: others do their work",
        library="torchao",
    ),
    Row(r"Unable to import `torchao` Tensor objects", why="a quantizer that is not used: one that is, is checked"),
    Row(
        r"some layers were not executed during the forward pass",
        why="of streamed groups: one that was not called brings its weights by itself when it is",
        library="diffusers",
    ),
    Row(r"`\w+` requires torchvision", why="pictures are prepared with Pillow then"),
    Row(r"has been deprecated and will not receive bug fixes", why=FOR_PROGRAMMERS),
    Row(r"Model config: \w+_token_id must be", why="a text encoder that only encodes ends no text"),
    Row(r"torch\.meshgrid: in an upcoming release", why=FOR_PROGRAMMERS),
    Row(r"TypedStorage is deprecated|`torch_dtype` is deprecated|`use_return_dict` is deprecated", why=FOR_PROGRAMMERS),
    Row(r"experimental feature|Defaulting `attention_head_dim`", why=NO_MATTER),
    Row(r"given NumPy array is not writable", why="nothing writes to it"),
    Row(r"", why=FOR_PROGRAMMERS, category="FutureWarning"),
    Row(r"", why=FOR_PROGRAMMERS, category="DeprecationWarning"),
    Row(r"", why=FOR_PROGRAMMERS, category="PendingDeprecationWarning"),
    Row(r"", why="a file that a library closes late", category="ResourceWarning"),
)


def sort(library: str, text: str, category: str = "") -> str | None:
    """What a user is told of a library's warning; None where it is for the log alone.

    `category`: the class of a Python warning, "" for a line of a library's log.
    """
    text = in_a_line(_report(text) if REPORT in text else text[:LONGEST_READ])
    for row in ROWS:
        known = row.library in ("", library) and row.category in ("", category)
        if known and (said := re.search(row.pattern, text)):
            return row.words.format(*map(_part, said.groups())) if row.words else None
    return quoted(library, shorten(text, LONGEST, placeholder="…"))


def _report(text: str) -> str:
    """transformers' table of weights that do not fit a model, as the model's class and the first of the worst kind."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", text)
    name = (text.partition(REPORT)[0].split() or [""])[-1]
    found: dict[str, str] = {}
    for key, status in pairwise(text.split("|")):
        if (kind := status.strip()) in STATUSES and not (words := key.rstrip()).endswith("position_ids"):
            found.setdefault(kind, (words.split() or [""])[-1])
    worst = next((f"{kind}: {found[kind]}" for kind in STATUSES if kind in found), "nothing")
    return f"{name}{REPORT}: {worst}"


STATUSES = ("MISSING", "MISMATCH", "CONVERSION", "UNEXPECTED")  # the worst first


def cut_off(text: str) -> list[str]:
    """Of a warning that prompts are too long, one warning for each prompt, in order; "" for one that is not.

    [] for any other warning.
    """
    start = text.find("tokens: [") + len("tokens: ")
    listed = text[start:].rstrip()
    if "input was truncated because" not in text or start < len("tokens: ") or not listed.endswith("]"):
        return []
    try:
        lost = ast.literal_eval(listed)
    except (SyntaxError, ValueError, MemoryError, RecursionError):
        return []
    return [text[:start] + str([words]) if _part(words) else "" for words in map(str, lost)]


def _part(text: str | None) -> str:
    """What a pattern's group found, as it is shown: without a list's brackets, and the tokens that pad prompts."""
    bare = re.sub(r"(?:<\|?[a-z]+\|?>)+|!{3,}", " ", text or "")
    return shorten(bare.strip("[]'\" "), 60, placeholder="…")


def in_a_line(text: str) -> str:
    """A library's text in one line, without tokens, folders of this machine, and addresses of objects.

    What goes into a file must be the same wherever and whenever it is made.
    """
    text = re.sub(r"\x1b\[[0-9;]*m", "", redacted(text))
    text = "".join(letter if letter.isprintable() else " " for letter in text)
    text = re.sub(r"\(Triggered internally at .*?\)", "", text)
    text = re.sub(r" +", " ", text).strip()
    return re.sub(r"\b0x[0-9a-f]{6,}\b", "0x…", placeless(text))
