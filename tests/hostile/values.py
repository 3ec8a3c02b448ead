"""Values that nobody means well: numbers, texts, paths, JSON, of a command line and of files alike."""

from __future__ import annotations

import json
import random
import string
from collections.abc import Sequence

NUMBERS = (
    "0", "-1", "-0", "+5", "1e400", "-1e400", "1e-400", "nan", "NaN", "inf", "-inf", "Infinity", "9" * 400,
    "10" * 2500,
    "٣", "１２", "½", "1_000", " 5", "5\n", "0x10", "1e3", "16.0", "2147483648", str(2**63), str(2**64), "-" + "9" * 30,
    "", "-", "1,5", "1e", "true", "None",
)  # fmt: skip
TERMINAL = (
    "\x1b[2J", "\x1b]0;x\x07", "a\nb", "a\rerror: b", "a\x9b31mb", "\u202egnp.x", "\u2066x", "a\u2028b", "\x7f",
    "\x08\x08",
    "\udcff", "a\udc9bb", "\x1b[31m\udcff\u202e\n",
)  # fmt: skip
TEMPLATES = (
    "{", "}", "{}", "{0}", "{seed:>99999999}", "{seed:0999999999d}", "{prompt.__class__}", "{name[0]}", "{seed!r}",
    "{{seed}}", "{seed}{", "{nothing}", "{prompt:.999999999}", "{id:{seed}}", "{ext}", "{prompt}" * 50, "{index:%}",
)  # fmt: skip
PATHS = (
    ".", "..", "/", "-", "--", "~", "~nobody-here/x", "../../x", "./", "a/b/c/d", "a/" * 1000, "x" * 255, "x" * 300,
    "é" * 200,
    "/dev/full", "/dev/zero", "/proc/self/mem", "/proc/self/fd/0", "/nowhere/x", "C:\\x", "con", "x/.", "x\\y", "*",
    "?", "[a",
)  # fmt: skip
URLS = (
    "file:///etc/hostname", "http://127.0.0.1:9/x", "http://[", "http://[::1", "http://x:99999999/", "http:///x",
    "https://", "://",
    "s3://", "s3://no-bucket/x", "gs://", "hf://", "hf://datasets/x", "memory://x", "zip://x", "local://x",
    "http://\udcff/",
    "http://user:secret@127.0.0.1:9/x?token=hf_abcdefghijklmnop", "ftp://127.0.0.1:9/", "data:image/png;base64,AAAA",
    "simplecache::http://127.0.0.1:9/x", "github://a:b@c/d", "http://127.0.0.1:9/\r\nHost: x", "reference://x",
    "dir://",
)  # fmt: skip
JSON = (
    "{", "[", "null", "5", '"x"', "[1", "{}", "[]", '{"a": 1, "a": 2}', '{"\\ud800": 1}', '"\\ud800"', "1e999", "NaN",
    "[" * 100_000, '{"a":' * 3000, "[" * 90 + "]" * 90, "-" * 1000, "9" * 5000, '{"self": {"__class__": "os"}}',
    "\ufeff{}",
    '{"\\u001b[2J": 1}', '{"scale": NaN}', '{"a": ' + "1" * 4301 + "}",
)  # fmt: skip
SPLIT = (
    "=", "x=", "=x", "==", "a=b=c", "@", "a@", "@b", "a@b@c", "a=b@nan", "a@1e999", "x=5@", ",", ",,", "a,,b", ":",
    "vae=", "vae=..",
    "transformer=embedded:demo@x", "prompt=", "seed=1", "prompt=[1]", "width=1..10**9", "x=1..9999999999",
    "seed=0..1e30",
    "guidance_scale=0..1..0", "guidance_scale=0..1..1e-300", "width=9..1", "width=nan..5", "seed=1..2..nan",
    "width=-1..-5",
    "prompt=" + '["x",' * 50, "prompt=" + "x," * 2000, "seed=" + "9" * 400, "seed=1..5..0", "width=16..1e18..16",
    "prompt=\x1b[2J,\u202e", "guidance_scale=1e308..1.7e308..1e300", "guidance_scale=-1.7e308..1.7e308..1e305",
    "seed=1..3..0.1",
)  # fmt: skip
LONG = ("x" * 100_000, "é" * 30_000, "a b " * 20_000, "\x1b" * 10_000, "-" * 5000)
SHELL = (
    "$(touch x)",
    "`touch x`",
    "; touch x",
    "%s%n",
    "%(x)s",
    "[red]x[/]",
    "[/]",
    "<b>",
    "\\",
    "'",
    '"',
    "#",
    "!",
    "&&",
)
KEYS = ("d3d470a7650a", "000000", "f" * 64, "0" * 63, "DEMO", "demo\n", "demo ", "demo/../demo", "Demo")
ALL = (NUMBERS, TERMINAL, TEMPLATES, PATHS, URLS, JSON, SPLIT, LONG, SHELL, KEYS, ("",))


def text(rng: random.Random) -> str:
    """One of all these, seldom a long one; or two of them, or one with something random."""
    pool = rng.choice(ALL)
    one = rng.choice(pool if pool is not LONG or rng.random() < 0.3 else TERMINAL)
    draw = rng.random()
    if draw < 0.1:
        one += rng.choice(rng.choice(ALL[:5]))
    elif draw < 0.2:
        one = "".join(
            rng.choice((*string.printable, "\x1b", "\u202e", "é", "\udc80", "😀", "{", "=")) for _ in range(12)
        )
    return one


def number(rng: random.Random) -> str:
    return rng.choice(NUMBERS) if rng.random() < 0.8 else text(rng)


def value(rng: random.Random, depth: int = 3) -> object:
    """A value of JSON, with what JSON cannot hold now and then (NaN) where `json.dumps` writes it."""
    draw = rng.random()
    if depth and draw < 0.15:
        return [value(rng, depth - 1) for _ in range(rng.randrange(4))]
    if depth and draw < 0.3:
        return {text(rng)[:300]: value(rng, depth - 1) for _ in range(rng.randrange(4))}
    odd: Sequence[object] = (
        None, True, False, 0, -1, 5, 10**30, 10**400, -(10**400), 1.5, 1e308, float("nan"), float("inf"), "", [], {},
        [[]],
        "\ud800", "\x00", 2**63, -(2**63), 0.1, [None], {"": None},
    )  # fmt: skip
    return rng.choice(odd) if rng.random() < 0.6 else text(rng)[:2000]


def changed(given: object, rng: random.Random) -> object:
    """A value of JSON with one thing in it, at any depth, other, gone, doubled or renamed."""
    if isinstance(given, dict) and given and rng.random() < 0.85:
        name = rng.choice(list(given))
        rest = {key: one for key, one in given.items() if key != name}
        draw = rng.random()
        if draw < 0.12:
            return rest
        if draw < 0.2:
            return {**rest, text(rng)[:300]: given[name]}
        if draw < 0.27:
            return {**given, text(rng)[:300]: value(rng)}
        return {**given, name: changed(given[name], rng)}
    if isinstance(given, list) and given and rng.random() < 0.8:
        at = rng.randrange(len(given))
        draw = rng.random()
        if draw < 0.12:
            return given[:at] + given[at + 1 :]
        if draw < 0.25:
            return given + given[at : at + 1] * rng.choice((1, 2, 1000))
        return [*given[:at], changed(given[at], rng), *given[at + 1 :]]
    return value(rng)


def json_bytes(given: object, rng: random.Random) -> bytes:
    """JSON as a hostile writer has it: whole most times, else with bytes changed or cut."""
    try:
        data = json.dumps(given).encode("utf-8", "surrogatepass")
    except ValueError:  # whole numbers of more digits than Python writes
        data = b'{"a": ' + b"9" * 5000 + b"}"
    return data if rng.random() < 0.7 else bytes_changed(data, rng)


def bytes_changed(data: bytes, rng: random.Random) -> bytes:
    """Bytes cut short, flipped, doubled, with others between them, or with what no text has."""
    if not data:
        return rng.randbytes(20)
    at = rng.randrange(len(data))
    draw = rng.randrange(6)
    if draw == 0:
        return data[:at]
    if draw == 1:
        return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]
    if draw == 2:
        return data + data[at:]
    if draw == 3:
        return data[:at] + rng.choice((b"\xff\xfe", b"\x00", b"\xed\xa0\x80", b"\x1b[2J", b"\n", b"\r")) + data[at:]
    if draw == 4:
        return data[:at] + rng.randbytes(rng.randrange(1, 20)) + data[at:]
    return data[:at] + data[at + rng.randrange(1, 20) :]
