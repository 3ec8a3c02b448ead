"""The settings files of a model, parsed at the wall: JSON of a bounded size, no code of the model's own, no number that
would keep a constructor busy for hours."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import PurePosixPath

from ..core.canonical import JsonObject, JsonValue
from ..core.errors import UsageError
from ..core.parsing import Misfit, parse_json
from ..core.source import Source
from ..storage.disk import shortened
from .model_files import INDEX, is_setting

Read = Callable[[str], str]  # a path in the source -> the text of that file
Pair = tuple[str, str]  # a library and a class of it

# Those that the libraries read as a JSON object.
OBJECTS = frozenset(
    {
        "config.json",
        "generation_config.json",
        "preprocessor_config.json",
        "processor_config.json",
        "scheduler_config.json",
        "special_tokens_map.json",
        "tokenizer_config.json",
        "video_preprocessor_config.json",
    }
)
VOCABULARIES = frozenset({"tokenizer.json", "vocab.json", "added_tokens.json", "tekken.json"})  # large, and words alone
SCHEDULER = "scheduler_config.json"
VERSION = re.compile(r"(?<=^config)\..+\.(?=json$)")  # config.5.0.0.json, which transformers takes from that version on
TOKENIZER, TOKENIZED = "tokenizer_config.json", "tokenizer.json"
ADAPTER = "adapter_config.json"  # transformers loads the adapter, or another model that the file names

LARGEST = 20_000_000  # bytes of one settings file or index; a tokenizer's with 260,000 words of Gemma 3 has 1.2 million
LARGEST_VOCABULARY = 500_000_000  # bytes of a tokenizer's own files; Gemma 3's tokenizer.json has 33 million
MOST_LAYERS = 20_000  # layers, blocks, heads, experts; DeepSeek V3 has 61 layers of 256 experts, Doge 16,384 experts
WIDEST = 262_144  # any width; the widest layer of Llama 3.1 405B has 53,248
LONGEST = 1_000_000  # positions of a table that is made in advance; Z-Image has 1,536
LARGEST_SIZE = 1_000_000_000  # of words, pictures, sounds, positions; Llama 4 has 10,485,760 positions
MOST_STEPS = 100_000  # any whole number of a scheduler; models are trained on 1,000 steps
MOST_LISTED = 10_000  # entries of one list; trained_betas have 1,000, lists of blocks some ten
LONGEST_PROMPT = 2_000_000  # tokens that a tokenizer says it takes; Qwen2.5-1M has 1,010,000
ENDLESS = (10**30, int(1e30))  # what transformers writes where it takes any
LONGEST_OF_CLIP = 10_000  # pipelines fill every prompt of a CLIP up to what it takes, which is 77
MOST_WORDS = 10_000_000  # any other whole number of a tokenizer; its words are 262,144 at most
WIDEST_PICTURE = 16_384  # pixels, bins of a spectrum; processors take 224 to 1,024, and 1,024 bins
# What a setting counts, by its name, and the most of it; the first that fits.
Bounds = tuple[tuple[re.Pattern[str], int], ...]
BOUNDS: Bounds = (
    (
        re.compile(r"(^|_)(layers?|blocks?|heads|experts|stages|depths?|resnets?)(_per_block)?$|^n_(layer|head)$"),
        MOST_LAYERS,
    ),
    (re.compile(r"(^|_)(dims?|channels|features|width)(_|$)|^(d_\w+|hidden_size|intermediate_size)$"), WIDEST),
    (re.compile(r"(^|_)(lens|max_seq_len|max_size)$"), LONGEST),
    (re.compile(r"(size|positions|embeddings|tokens|length|len|rank)$"), LARGEST_SIZE),
)
NUMBERS: Mapping[str, Bounds] = {
    "config.json": BOUNDS,
    SCHEDULER: ((re.compile(""), MOST_STEPS),),
    TOKENIZER: ((re.compile(r"^extra_ids$"), MOST_STEPS), (re.compile(r"^(?!model_max_length$)"), MOST_WORDS)),
    **dict.fromkeys(
        ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
        (
            (re.compile(r"^(height|width)$|(^|_)(size|bins|mels|filters|fft)$"), WIDEST_PICTURE),
            (re.compile(""), LARGEST_SIZE),
        ),
    ),
}
# Where transformers takes the name of a kernel on the hub (owner/name), which is code: integrations/hub_kernels.py.
KERNEL = re.compile(r"_implementation(_internal)?$")
# Classes that look a class up where a file says so: all Auto classes, and processors, whose parts are found by those.
ASKS = re.compile(r"Auto[A-Z]\w*|\w*Processor\w*")
# Fields by which a library reads a file of another name, which has no digest unless it lies beside.
BESIDE = frozenset({"transformers_weights", "configuration_files", "fast_tokenizer_files", "gguf_file"})
ELSEWHERE = frozenset({"audio_tokenizer_name_or_path", "class_info_file", "repo_path", "backbone"})
WORDS = frozenset({"vocab", "merges", "init_inputs"})  # of a tokenizer, which are the words themselves elsewhere
# Where their makers had those files: transformers takes those of the folder, or none.
HEEDED_NOWHERE = frozenset({"tokenizer_file", "special_tokens_map_file", "added_tokens_file", "chat_template_file"})
CONSENT = "read it, then pass --trust-remote-code if you trust it"
AGAIN = "copy or fetch the model again"


def check(source: Source, classes: Mapping[str, Pair], read: Read, *, trusted: bool) -> None:
    """Whether the settings of a source can be handed to the libraries. `classes`: of the pipeline's components.

    Raises UsageError for a file that is too large, damaged, wants code of its own to run without being `trusted`, or
    asks for a model beyond any that there is.
    """
    for path in source.files:
        name = PurePosixPath(path).name
        if INDEX.fullmatch(name):
            _check_index(source, path, read)
        elif is_setting(path):
            _check_size(source, path, LARGEST_VOCABULARY if name in VOCABULARIES else LARGEST)
            if name.endswith(".json") and path != "model_index.json":
                _check_file(source, path, classes, read, trusted)


def parsed(source: Source, path: str, text: str) -> JsonObject:
    """A settings file that is an object. Raises UsageError for any other."""
    value = _parsed(source, path, text)
    if not isinstance(value, dict):
        raise _damaged(source, path, f"it holds a {type(value).__name__} where an object is needed")
    return value


def _check_file(source: Source, path: str, classes: Mapping[str, Pair], read: Read, trusted: bool) -> None:
    name = PurePosixPath(path).name
    if name in VOCABULARIES and source.kind == "hub":
        return
    component = source.role.name if source.role.kind == "component" else PurePosixPath(path).parts[0]
    try:
        text = read(path)
    except UnicodeDecodeError as error:
        raise _damaged(source, path, "it is no JSON") from error
    if name not in OBJECTS and source.kind != "hub" and not _whole(text):
        raise _damaged(source, path, "it is cut short")
    if name in VOCABULARIES:
        return
    if name in OBJECTS:
        settings = parsed(source, path, text)
    else:  # of another tool, or read as a version of one of them ("configuration_files")
        try:
            value = _parsed(source, path, text)
        except UsageError:
            return
        if not isinstance(value, dict):
            return
        settings = value
    pair = classes.get(component, ("", ""))
    _refuse_other_files(source, path, pair[0], settings)
    if not trusted:
        _refuse_code(source, path, component, pair, settings)
    _check_numbers(source, path, pair[1], settings)


def _refuse_code(source: Source, path: str, component: str, pair: Pair, settings: JsonObject) -> None:
    """Raises UsageError where a class would be looked up in the model's own code, or code be fetched from the hub."""
    for depth, name, value in _fields(settings):
        if name == "auto_map" and value and (depth or ASKS.fullmatch(pair[1])):
            raise UsageError(f"{source.label} wants to run code of its own for {component}", CONSENT)
        if KERNEL.search(name) and any("/" in text for text in _texts(value)):
            raise UsageError(f"{path} of {source.label} names code of the hub as its {name.strip('_')}", CONSENT)


def _refuse_other_files(source: Source, path: str, library: str, settings: JsonObject) -> None:
    """Raises UsageError where a library would read a file that is not among those of the source: it has no digest, and
    nobody looked at it. A part of a pipeline's own module may be a model of transformers too."""
    name, folder = PurePosixPath(path).name, PurePosixPath(path).parent
    if name == ADAPTER and library not in ("", "diffusers"):
        raise UsageError(
            f"{path} of {source.label} has transformers load other weights than the model's own",
            "remove it, and name the adapter with --lora",
        )
    own = {one.name for one in map(PurePosixPath, source.files) if one.parent == folder}
    for _depth, field, value in _fields(settings):
        known = own if field in BESIDE or field.endswith("_file") else frozenset[str]()
        if _names_files(name, field, own) and (other := next((one for one in _texts(value) if one not in known), "")):
            raise UsageError(
                f"{field} in {path} of {source.label} names {shortened(other)}, which is none of the model's own files",
                "take the field out, and give the file its usual name",
            )


def _names_files(name: str, field: str, own: Collection[str]) -> bool:
    """Whether a field of a settings file says what files are read; `own`: those beside it.

    A tokenizer.json is read in place of all others: some have stayed from the tokenizer that it was made of.
    """
    if name != TOKENIZER:
        return field in BESIDE | ELSEWHERE
    words = field.endswith("_file") and field not in HEEDED_NOWHERE and TOKENIZED not in own
    return words or field in BESIDE | WORDS


def _check_numbers(source: Source, path: str, class_name: str, settings: JsonObject) -> None:
    """Raises UsageError for a number of layers, a size, a length or a list beyond any that a model has."""
    name = VERSION.sub(".", PurePosixPath(path).name)
    if name not in NUMBERS:
        return
    for _depth, key, value in _fields(settings):
        most = next((most for named, most in NUMBERS[name] if named.search(key)), 0)
        if isinstance(value, list) and len(value) > MOST_LISTED and name != TOKENIZER:
            raise _beyond(source, path, key, f"has {len(value)} entries", MOST_LISTED)
        if most and any(abs(number) > most for number in _numbers(value)):
            raise _beyond(source, path, key, "is larger", most)
        if name == TOKENIZER:
            _check_words(source, path, class_name, key, value)
        edges = value if isinstance(value, dict) and "longest_edge" not in value else {}  # else, numbers of pixels
        if any(number > WIDEST_PICTURE for number in _numbers(edges.get("shortest_edge"))):
            raise _beyond(source, path, "shortest_edge", "is larger", WIDEST_PICTURE)


def _check_words(source: Source, path: str, class_name: str, key: str, value: JsonValue) -> None:
    """Raises UsageError for a number of tokens to which no prompt can be filled up or cut, and for ids of words far
    apart: what lies between them is filled up."""
    clip = class_name.startswith("CLIPTokenizer")
    most = LONGEST_OF_CLIP if clip else LONGEST_PROMPT
    if key == "model_max_length" and value is not None and (clip or value not in ENDLESS):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 1 <= value <= most:
            raise _beyond(source, path, key, "is no number of tokens, or is larger", most)
    elif key == "added_tokens_decoder" and isinstance(value, dict):
        ids = [int(word) if word.isdecimal() and len(word) < 20 else MOST_WORDS + 1 for word in value]
        if max(ids, default=0) > MOST_WORDS:
            raise _beyond(source, path, key, "has an id that is larger, or none", MOST_WORDS)


def _beyond(source: Source, path: str, key: str, what: str, most: int) -> UsageError:
    return UsageError(f"{key} in {path} of {source.label} {what}: no model goes beyond {most}", AGAIN)


def _check_index(source: Source, path: str, read: Read) -> None:
    """Raises UsageError for an index that names a file elsewhere, or of another kind: "../x", a pickle."""
    _check_size(source, path, LARGEST)
    folder = PurePosixPath(path).parent
    own = {PurePosixPath(one).name for one in source.files if PurePosixPath(one).parent == folder}
    if source.kind != "hub":
        return  # compared with the headers, file by file: see building/folder_checks.py
    files = parsed(source, path, read(path)).get("weight_map")
    listed = (
        set(files.values()) if isinstance(files, dict) and all(isinstance(f, str) for f in files.values()) else {""}
    )
    if lost := sorted(str(one) for one in listed - own):
        raise UsageError(f"{path} of {source.label} names {lost[0] or 'no files'}, which is not there", AGAIN)


def _check_size(source: Source, path: str, most: int) -> None:
    if source.files[path].size > most:
        raise UsageError(f"{path} of {source.label} is larger than {most} bytes: it is no settings file", AGAIN)


def _parsed(source: Source, path: str, text: str) -> JsonValue:
    try:
        return parse_json(text, LARGEST, finite=False)
    except Misfit as error:
        raise _damaged(source, path, str(error)) from error


def _fields(value: JsonValue, depth: int = 0) -> Iterator[tuple[int, str, JsonValue]]:
    """Every field of an object and of those in it: how deep it lies, its name, its value."""
    if isinstance(value, dict):
        yield from ((depth, name, one) for name, one in value.items())
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for one in inside:
        yield from _fields(one, depth + 1)


def _texts(value: JsonValue) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _texts(one)


def _numbers(value: JsonValue) -> Iterator[int]:
    """The whole numbers of a field, those of lists in it too."""
    if isinstance(value, int) and not isinstance(value, bool):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _numbers(one)


def _whole(text: str) -> bool:
    """Whether a JSON file ends as it begins: a large one that was cut short does not."""
    data = text.strip()
    return (data[:1], data[-1:]) in (("{", "}"), ("[", "]"))


def _damaged(source: Source, path: str, why: str) -> UsageError:
    return UsageError(f"{path} of {source.label} is damaged: {why}", AGAIN)
