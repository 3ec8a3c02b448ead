"""A JSON value with one node changed to what no writer of it would put there."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

Node = tuple[str | int, ...]

# What a node becomes: of each kind, at its borders, and what a terminal, a path or a shell would take for its own.
VALUES: tuple[object, ...] = (
    None, True, False, 0, -1, 1, 2, 5, 10**18, 2**63, -(2**63), 10**30, 10**400, 0.5, -1e300, 1e-300,
    "", " ", "x", "zzz", "load", "none", "--help", "-h", "help", "context", "seed", "no_fit", "class", "__init__",
    "../../..", "/etc/passwd", "..", "a/../b.json", "C:\\x", "x" * 256, "x/" * 2000, "CON", "aux.json", "x.",
    "\x1b[2J", "a\nb", "\r", "\u202e", "\ud800", "\0", "é", "e\u0301", "os", "os.system", "embedded:../../x", "demo:x",
    "sha256:" + "0" * 64, "git:" + "0" * 40, "md5:0", "0" * 64, "0" * 40, "abcdef12", "5", "1e5",
    [], [[]], [None], ["x", "x"], [1], ["diffusers", "X"], {}, {"x": {}}, {"": 1}, {"../x": {}}, {"x": None},
)  # fmt: skip


def nodes(value: object, at: Node = ()) -> list[Node]:
    """The place of every node of a JSON value."""
    return list(_nodes(value, at))


def _nodes(value: object, at: Node) -> Iterator[Node]:
    yield at
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, one in inside:
        yield from _nodes(one, (*at, step))


def changed(rng: random.Random, value: object, at: Node) -> tuple[str, Any]:
    """What was done at a node, and the value with it: another value, gone, twice, renamed, or something new in it."""
    holder = [copy.deepcopy(value)]
    inside: Any = holder
    *steps, last = (0, *at)
    for step in steps:
        inside = inside[step]
    node, way = inside[last], rng.choice(("set", "set", "set", "gone", "twice", "renamed", "new"))
    new = rng.choice(VALUES)
    if way == "gone" and len(at) > 0:
        del inside[last]
    elif way == "twice" and isinstance(inside, list) and len(at) > 0:
        inside.append(copy.deepcopy(node))
    elif way == "renamed" and isinstance(inside, dict) and isinstance(new, str):
        inside[new] = inside.pop(last)
    elif way == "new" and isinstance(node, dict):
        node[str(new)[:300]] = rng.choice(VALUES)
    else:
        way = "set"
        inside[last] = copy.deepcopy(new)
    return f"{'.'.join(map(str, at)) or 'all of it'} {way} {repr(new)[:80]}", holder[0]
