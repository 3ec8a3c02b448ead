"""Model folders: the demo model's, with one of its settings files or its index as nobody means well."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import diffpipe
from diffpipe.building.checks import check
from diffpipe.building.request import Request
from diffpipe.cache.store import Store
from diffpipe.catalog import plugins
from diffpipe.core.build_spec import BuildSpec
from hostile.runner import Case, Line

CASES, LINES = 150, 8
CHECKED = 0.15  # of the mutations go on to the classes of the libraries, which takes a hundred times as long

OWN = {"AutoTokenizer": ["own.Own", None], "AutoModel": "own.Own", "AutoProcessor": "own.Own"}
VALUES: tuple[Any, ...] = (
    None, True, False, "", "x", "../../etc", "\x1b[2J", "\ud800", 0, -1, 1, 7, 10**4, 10**9, 10**15, 10**30, -(10**9),
    0.5, 1e300, float("nan"), float("inf"), [], [0], [10**9], [[10**9]], ["x"] * 50, [1] * 20_000, {},
    {"auto_map": OWN}, {"x": {"auto_map": OWN}}, "owner/kernel", ["diffusers", "os"], ["os", "system"],
    ["diffusers", "FluxPipeline"], ["diffusers", "AutoModel"],
    ["transformers", "AutoTokenizer"], ["transformers", "__class__"], ["own", "Own"],
    [None, None],
)  # fmt: skip
ADDED: dict[str, Any] = {
    "auto_map": OWN,
    "attn_implementation": "owner/kernel",
    "_attn_implementation": {"": "owner/kernel"},
    "quantization_config": {"quant_method": "nunchaku_lite", "modules": ["os.system"]},
    "torch_dtype": "__import__",
    "dtype": "os",
    "architectures": 5,
    "_class_name": ["own", "Own"],
    "_name_or_path": "../../..",
    "configuration_files": ["own.json"],
    "text_config": {"model_type": "own", "auto_map": OWN},
}
TEXTS: dict[str, Callable[[str], bytes]] = {
    "cut short": lambda text: text[: len(text) // 2].encode(),
    "empty": lambda text: b"",
    "a list": lambda text: f"[{text}]".encode(),
    "UTF-16": lambda text: text.encode("utf-16"),
    "a mark before it": lambda text: b"\xef\xbb\xbf" + text.encode(),
    "no UTF-8": lambda text: text.encode() + b"\xff",
    "deep": lambda text: b'{"a":' + b"[" * 100_000,
    "deep and whole": lambda text: b'{"a":' * 500 + b"1" + b"}" * 500,
    "a long number": lambda text: b'{"num_layers": 1' + b"0" * 5000 + b"}",
    "twice": lambda text: text.rstrip().rstrip("}").encode() + b', "num_layers": 1000000000, "num_layers": 1000000000}',
    "many names": lambda text: json.dumps({f"name_{n}": n for n in range(20_000)}).encode(),
}


def cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    model = Model(folder)
    for name in TEXTS:
        for path in model.settings:
            yield model.case(f"{path}, {name}", path, TEXTS[name](model.kept[path]))
    while True:
        yield model.mutated(rng)


def lines(rng: random.Random, folder: Path) -> Iterator[Line]:
    number = 0
    while True:
        model, number = Model(folder / f"model-{number}"), number + 1
        case = model.mutated(rng)
        model.write(case.what)
        command = "plan" if number % 3 == 0 else "build"
        yield Line(case.what, (command, "custom", "--model", str(model.root), "--name", "hostile"), stdin=b"y\n" * 100)


class Model:
    """A copy of the demo model, of which one file at a time is another."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "model"
        shutil.copytree(
            Path(diffpipe.__file__).parent / "demo", self.root, ignore=shutil.ignore_patterns("lora", "*.py", "vocab*")
        )
        self.store = Store(folder / "home")
        self.settings = sorted(path.relative_to(self.root).as_posix() for path in self.root.rglob("*.json"))
        self.kept = {path: (self.root / path).read_text(encoding="utf-8") for path in self.settings}
        self.texts: dict[str, tuple[str, bytes]] = {}

    def mutated(self, rng: random.Random) -> Case:
        path = rng.choice(self.settings)
        value = json.loads(self.kept[path])
        while not isinstance(value, dict):
            path = rng.choice(self.settings)
            value = json.loads(self.kept[path])
        for _ in range(rng.choice((1, 1, 2, 4))):
            if rng.random() < 0.3:
                name = rng.choice(list(ADDED))
                value[name] = ADDED[name]
            else:
                name = rng.choice([*value, "own"])
                value[name] = rng.choice(VALUES)
        text = json.dumps(value)
        if rng.random() < 0.2:
            text = text.replace("auto_map", "\\u0061uto_map")
        return self.case(f"{path}: {text[:600]}", path, text.encode(), whole=rng.random() < CHECKED)

    def case(self, what: str, path: str, data: bytes, *, whole: bool = False) -> Case:
        self.texts[what] = path, data
        return Case(what, lambda: self.checked(what, whole))

    def write(self, what: str) -> Path:
        path, data = self.texts.pop(what)
        (self.root / path).write_bytes(data)
        return self.root / path

    def checked(self, what: str, whole: bool) -> None:
        """What pinning asks of the model, and `whole`, all that a build asks before it loads any of it."""
        changed = self.write(what)
        try:
            row = plugins.providers()["custom"].types[0]
            spec = BuildSpec("custom", row.name, str(self.root), dtype="float32", device="cpu")
            request = Request(spec, row, self.store, offline=True)
            resolved = request.resolved(spec)
            if whole:
                check(resolved, row, True, dict)
        finally:
            changed.write_text(self.kept[changed.relative_to(self.root).as_posix()], encoding="utf-8")
