"""Files that say what to make or what was made: prompt files, presets, journals, and the documents inside media."""

from __future__ import annotations

import functools
import io
import itertools
import json
import random
import struct
import wave
import zlib
from collections.abc import Iterator
from pathlib import Path

from diffpipe.batch.journal import opened_to_read
from diffpipe.batch.presets import fitting, preset
from diffpipe.batch.prompt_files import rows, typed
from diffpipe.cli.inspect_file import rows as lines_of
from diffpipe.cli.inspect_file import texts_of
from diffpipe.core.errors import UsageError
from diffpipe.core.flag import Flag
from diffpipe.core.printable import printable
from diffpipe.results.document import parsed
from diffpipe.results.parameters import parameters
from hostile import values
from hostile.runner import Case, Line

LINES, CASES = 120, 500
SAMPLES = Path(__file__).parent.parent
MOST_ROWS = 2000  # of a prompt file that are looked at
FLAGS = {
    "prompt": Flag("prompt", "text", required=True), "width": Flag("width", "integer", minimum=16, maximum=4096),
    "guidance_scale": Flag("guidance_scale", "number"), "sigmas": Flag("sigmas", "number", many=True, scalar=False),
    "mode": Flag("mode", "choice", choices=("fast", "fine")), "image": Flag("image", "image", many=True),
    "extra": Flag("extra", "json"), "use_mask": Flag("use_mask", "boolean"),
}  # fmt: skip
NAMES = frozenset(FLAGS) | {"unflagged"}
COLUMNS = (*NAMES, "id", "output", "seed", "count", "Prompt", "\x1b[2J", "", "__class__", "negative prompt")
TEXTS = (  # prompt files
    b"", b"\n\n\n", b"\xff\xfea\x00", b"\x00" * 50, b"a\x00b\n", b"prompt\n" + b'"' * 3001,
    b'prompt,"wid\nth"\n1,2\n', b"# only\n",
    b'{"prompt": "\\ud800"}\n', b"[" * 5000, b'{"prompt":' * 2000 + b"\n", b'{"seed": 1e400}\n', b"\xed\xa0\x80\n",
    b"\xef\xbb\xbf" * 9,
    b"prompt,prompt\na,b\n", b"prompt;width\na;1;2;3\n", b'{"prompt": "x", "prompt": "y"}\n',
    b'{"seed": ' + b"9" * 5000 + b"}\n",
    b'{"id": "../../x", "prompt": "a"}\n', b'{"output": "/dev/full", "prompt": "a"}\n',
    b'{"id": "\\u001b[2J", "prompt": 5}\n',
    b"prompt,seed\na,\xd9\xa3\n", b'{"count": 1e30, "prompt": "a"}\n',
    b'{"output": "{seed:>99999999}", "prompt": "a"}\n', b"\x1b[2J\n",
)  # fmt: skip
TOML = (
    b"prompt = 1979-05-27", b"prompt = nan", b"width = 0x10", b"a.b.c = 1", b'"\\u001b[2J" = 1',
    b"prompt = " + b"[" * 3000, b"=",
    b"seed = " + b"9" * 5000, b"[[prompt]]", b"prompt = '''\n\x1b'''", b"width = 1_6", b"seed = 1e400",
    b"a = {b = {c = 1}}\n",
    b".".join([b"a"] * 3000) + b" = 1", b"\xef\xbb\xbfwidth = 16", b"prompt = 07:32:00", b"sigmas = [1, 'a', nan]",
)  # fmt: skip
DOCUMENTS = ("cat", "fox", "hub", "panda")
JOURNAL = (SAMPLES / "batch/samples/journal.jsonl").read_bytes()


# Calls


def cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    for data, form in itertools.product(TEXTS, ("text", "jsonl", "csv", None)):
        yield Case(f"prompts as {form}: {data[:200]!r}", functools.partial(_prompts, data, form))
    for data in TOML:
        yield Case(f"preset: {data[:200]!r}", functools.partial(_preset, folder / "x.toml", data))
    drawn = (_drawn_prompts, _drawn_preset, _drawn_journal, _drawn_document, _drawn_media)
    while True:
        yield rng.choice(drawn)(rng, folder)


def _prompts(data: bytes, form: str | None) -> None:
    stream = io.TextIOWrapper(io.BytesIO(data), "utf-8", "surrogateescape", newline="")
    for row in itertools.islice(rows(stream, "p\x1b.txt", form, NAMES), MOST_ROWS):
        try:
            typed(row, FLAGS, NAMES)
        except UsageError as error:
            _printed(error.message, error.hint)


def _preset(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    fitting(preset(str(path), path.parent), path.name, FLAGS, NAMES)


def _journal(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    with opened_to_read(path) as journal:
        for name in ("fox", "bad", "\x1b"):
            journal.last(name)
    assert path.read_bytes() == data


def _document(text: str) -> None:
    made = parsed(text)
    for name, value in lines_of(made):
        _printed(name, json.dumps(value))
    _printed(parameters(made))


def _media(path: Path, data: bytes) -> None:
    path.write_bytes(data)
    for text in texts_of(path).values():
        _printed(text)


def _printed(*texts: str) -> None:
    for text in texts:
        printable(text).encode("utf-8", "surrogateescape")


# Drawn


def _drawn_prompts(rng: random.Random, folder: Path) -> Case:
    if rng.random() < 0.5:
        names = [rng.choice(COLUMNS) for _ in range(rng.randrange(1, 5))]
        lines = [names, *([values.text(rng)[:2000] for _ in names] for _ in range(3))]
        data, form = "\n".join(map(",".join, lines)).encode("utf-8", "surrogateescape"), "csv"
    else:
        row = {rng.choice(COLUMNS): values.value(rng) for _ in range(rng.randrange(1, 5))}
        data, form = b"\n".join(values.json_bytes(row, rng) for _ in range(2)), "jsonl"
    return Case(f"prompts as {form}: {data[:1500]!r}", functools.partial(_prompts, data, form))


def _drawn_preset(rng: random.Random, folder: Path) -> Case:
    if rng.random() < 0.5:
        lines = [f"{rng.choice(COLUMNS[:6])} = {values.text(rng)[:500]}" for _ in range(2)]
        data = "\n".join(lines).encode("utf-8", "surrogateescape")
        return Case(f"preset: {data!r}", functools.partial(_preset, folder / "x.toml", data))
    data = values.json_bytes({rng.choice(COLUMNS): values.value(rng) for _ in range(rng.randrange(4))}, rng)
    return Case(f"preset: {data[:1500]!r}", functools.partial(_preset, folder / "x.json", data))


def _drawn_journal(rng: random.Random, folder: Path) -> Case:
    given = [json.loads(line) for line in JOURNAL.splitlines()]
    at = rng.randrange(len(given))
    given[at] = values.changed(given[at], rng)
    data = b"".join(values.json_bytes(one, rng) + b"\n" for one in given)
    data = data if rng.random() < 0.7 else values.bytes_changed(data, rng)
    return Case(f"journal: {data[:1500]!r}", functools.partial(_journal, folder / "x.journal.jsonl", data))


def text_of(rng: random.Random) -> str:
    """A document as a hostile file has it: a real one with something changed."""
    given = json.loads((SAMPLES / f"results/samples/{rng.choice(DOCUMENTS)}.json").read_bytes())
    for _ in range(rng.choice((1, 1, 2, 5))):
        given = values.changed(given, rng)
    return values.json_bytes(given, rng).decode("utf-8", "surrogateescape")


def _drawn_document(rng: random.Random, folder: Path) -> Case:
    text = text_of(rng)
    return Case(f"document: {text[:1500]!r}", functools.partial(_document, text))


def _drawn_media(rng: random.Random, folder: Path) -> Case:
    name, data = media(rng, text_of(rng).encode("utf-8", "replace"))
    data = values.bytes_changed(data, rng) if rng.random() < 0.6 else data
    return Case(f"{name}: {data.hex()[:3000]}", functools.partial(_media, folder / name, data))


# Media with such a text, written by hand: libraries would refuse much of it


def media(rng: random.Random, text: bytes) -> tuple[str, bytes]:
    """A file's name and bytes: PNG, GIF, JPEG or WAV."""
    writers = {"x.png": _png, "x.gif": _gif, "x.jpg": _jpeg, "x.wav": _wav}
    name = rng.choice(list(writers))
    return name, writers[name](text)


def _png(text: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = zlib.compress(b"\0" + bytes(3))
    head = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 2, 0, 0, 0))
    said = chunk(b"iTXt", b"diffpipe\0\0\0\0\0" + text) + chunk(b"tEXt", b"parameters\0\x1b[2J\x9b" + text[:50])
    return head + said + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def _gif(text: bytes) -> bytes:
    comment = json.dumps({"diffpipe": text.decode("utf-8", "replace"), "parameters": "\ud800\x1b"}).encode()
    blocks = b"".join(bytes([len(part := comment[at : at + 255])]) + part for at in range(0, len(comment), 255))
    return (
        b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff\x21\xfe" + blocks + b"\0"
        b"\x2c\0\0\0\0\x01\0\x01\0\0\x02\x02\x44\x01\0;"
    )


def _jpeg(text: bytes) -> bytes:
    from PIL import Image

    packet = b'<x xmlns:diffpipe="urn:diffpipe:"><diffpipe:document>' + text.replace(b"<", b"&lt;")[:60_000]
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "JPEG", xmp=packet + b"</diffpipe:document></x>")
    return stream.getvalue()


def _wav(text: bytes) -> bytes:
    comment = json.dumps({"diffpipe": text.decode("utf-8", "replace")}).encode()
    field = b"INFOICMT" + struct.pack("<I", len(comment)) + comment + bytes(len(comment) % 2)
    stream = io.BytesIO()
    with wave.open(stream, "wb") as sound:
        sound.setparams((1, 2, 8000, 0, "NONE", ""))
        sound.writeframes(bytes(1600))
    data = stream.getvalue() + b"LIST" + struct.pack("<I", len(field)) + field
    return data[:4] + struct.pack("<I", len(data) - 8) + data[8:]


# Command lines that read such files


def lines(rng: random.Random, folder: Path) -> Iterator[Line]:
    dry = ("generate", "demo", "--prompt", "x", "--dry-run")
    for number, data in enumerate((*TEXTS, *TOML)):
        ending = ("txt", "csv", "jsonl")[number % 3] if number < len(TEXTS) else "toml"
        (path := folder / f"{number}.{ending}").write_bytes(data)
        words = (
            (*dry, "--args", str(path))
            if ending == "toml"
            else ("generate", "demo", "--dry-run", "--prompts-from", str(path))
        )
        yield Line(f"{data[:100]!r}", words)
    while True:
        yield _drawn_line(rng, folder)


def _drawn_line(rng: random.Random, folder: Path) -> Line:
    draw = rng.random()
    if draw < 0.4:
        name, data = media(rng, text_of(rng).encode("utf-8", "replace"))
        (path := folder / name).write_bytes(data)
        command = rng.choice(
            (("inspect",), ("inspect", "--json"), ("reproduce", "--offline"), ("reproduce", "--verify", "--offline"))
        )
        return Line(f"{name} with {data[:1000]!r}", (*command, str(path)))
    if draw < 0.6:
        row = {
            rng.choice(("prompt", "width", "seed", "id", "output", "count", "sigmas")): values.value(rng)
            for _ in range(3)
        }
        (path := folder / "p.jsonl").write_bytes(data := values.json_bytes(row, rng))
        return Line(f"{data[:1000]!r}", ("generate", "demo", "--dry-run", "--prompts-from", str(path), "--keep-going"))
    if draw < 0.8:
        given = values.text(rng).encode("utf-8", "surrogateescape") + b"\n" + values.bytes_changed(TEXTS[-2], rng)
        return Line("standard input", ("generate", "demo", "--dry-run", "--prompts-from", "-"), stdin=given)
    given = [json.loads(line) for line in JOURNAL.splitlines()]
    data = b"".join(
        values.json_bytes(one if rng.random() < 0.5 else values.changed(one, rng), rng) + b"\n" for one in given
    )
    (path := folder / "j.jsonl").write_bytes(data)
    (prompts := folder / "fox.jsonl").write_text('{"prompt": "x", "id": "fox"}')
    words = ("--prompts-from", str(prompts), "--resume", "--journal", str(path), "--dry-run")
    return Line(f"journal {data[:1000]!r}", ("generate", "demo", *words))
