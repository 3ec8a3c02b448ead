"""Bundles that nobody exported: a real one changed at a node of its list, or made with tar and struct as others would.

After a refusal the cache is what it was, but for files by their digest, which the next try goes on with. After an
import the pipeline is listed, shown, and its --help works.
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import os
import random
import struct
import tarfile
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from manifests import component_json, config_json, manifest_json, source_json

from diffpipe.cache.bundle import transfer
from diffpipe.cache.sealed import sealed
from diffpipe.cache.states import standing
from diffpipe.cache.store import Store
from diffpipe.cli import flags, generate, pipelines
from diffpipe.core.canonical import digest
from diffpipe.core.errors import DiffpipeError
from hostile.nodes import changed, nodes
from hostile.runner import Case

CASES = 500
BLOCK = 512
COMMIT = "0123456789abcdef0123456789abcdef01234567"
INDEX = {"_class_name": "FluxPipeline", "vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "X"]}
FLAGS = [
    {"name": "prompt", "kind": "text", "required": True, "help": "What to make."},
    {"name": "width", "kind": "integer", "default": 64, "minimum": 8, "multiple_of": 8},
    {"name": "guidance_scale", "kind": "number", "default": 3.5, "minimum": 0},
    {"name": "resample", "kind": "choice", "default": "a", "choices": ["a", "b"]},
]


def weights() -> bytes:
    """A safetensors file with one number (huggingface/safetensors, README "Format")."""
    header = json.dumps({"x": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    return struct.pack("<Q", len(header)) + header + b"\0\0\x80\x3f"


FILES = {
    "model_index.json": json.dumps(INDEX).encode(),
    "vae/config.json": b"{}",
    "vae/diffusion_pytorch_model.safetensors": weights(),
    "scheduler/scheduler_config.json": b"{}",
}


def named(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


def listed(kind: str = "folder") -> dict[str, Any]:
    """The list of a bundle as an export writes it, before it is sealed; of a folder, or a repository of the hub."""
    infos = {path: {"size": len(data), "digest": named(data)} for path, data in FILES.items()}
    local = {"kind": "local", "subfolder": "", "files": {path: one["digest"] for path, one in infos.items()}}
    far = {"kind": "hub", "subfolder": "", "repository": "org/flux", "commit": COMMIT, "variant": None}
    config = config_json(base=far if kind == "hub" else local)
    classes = {name: pair for name, pair in INDEX.items() if isinstance(pair, list)}
    source = source_json(
        kind=kind, label="org/flux" if kind == "hub" else "flux", files=infos, subfolder="", pipeline="FluxPipeline",
        commit=COMMIT if kind == "hub" else None, variant=None, scale=1.0, components=classes,
    )  # fmt: skip
    parts = [component_json(name, pair[1], parameters=1, bytes=4, dtypes=["F32"]) for name, pair in classes.items()]
    manifest = manifest_json(
        config, sources=[source], components=parts, flags=FLAGS, arguments=[flag["name"] for flag in FLAGS],
        versions={"diffpipe": "0.1.0", "diffusers": "0.42.0"},
    )  # fmt: skip
    summary = {
        "provider": "flux", "type": "text2image", "pipeline": "FluxPipeline", "dtype": "bfloat16", "bytes": 8,
        "model": "org/flux@0123456" if kind == "hub" else "flux", "built": 1_700_000_000, "key": manifest["key"],
    }  # fmt: skip
    members = {f"files/{named(FILES[path])[7:]}": infos[path] for path in sorted(FILES)}
    return {
        "format": 1, "key": manifest["key"], "name": "flux", "manifest": manifest, "summary": summary, "embedded": {},
        "weights": {}, "files": [{"name": name, **info} for name, info in members.items()],
    }  # fmt: skip


def members() -> dict[str, bytes]:
    return {f"files/{named(FILES[path])[7:]}": FILES[path] for path in sorted(FILES)}


def rekeyed(value: Any) -> Any:
    """A list whose changed configuration has its own key, everywhere: what only its maker could notice."""
    with contextlib.suppress(KeyError, TypeError, ValueError, AttributeError):
        value["key"] = value["manifest"]["key"] = value["summary"]["key"] = digest(value["manifest"]["config"])
    return value


def packed(value: object, files: Mapping[str, bytes] | None = None) -> bytes:
    """A bundle of a list, whatever it says, sealed."""
    with contextlib.suppress(TypeError, ValueError):
        value = sealed(value)  # type: ignore[arg-type]
    return tarred({"bundle.json": json.dumps(value).encode(), **(members() if files is None else files)})


def tarred(files: Mapping[str, bytes], form: int = tarfile.GNU_FORMAT, **fields: Any) -> bytes:
    """A tar file by Python's own writer, of which the members have other fields than a plain file's."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w", format=form) as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    data = bytearray(made.getvalue()[: -(-made.tell() // BLOCK) * BLOCK])
    size = sum(BLOCK + len(one) + -len(one) % BLOCK for one in files.values()) + 2 * BLOCK
    return bytes(data[:size]) if form == tarfile.GNU_FORMAT else bytes(data)


# tar fields by hand: offset and length of each (POSIX ustar; GNU's base-256 numbers)
FIELDS = {
    "name": (0, 100), "mode": (100, 8), "uid": (108, 8), "gid": (116, 8), "size": (124, 12), "mtime": (136, 12),
    "checksum": (148, 8), "type": (156, 1), "linkname": (157, 100), "magic": (257, 8), "uname": (265, 32),
    "prefix": (345, 155),
}  # fmt: skip
TYPES = b"123456789gxLKSDMNV\0 \xff"
NAMES = (
    b"/etc/passwd", b"../../x", b"files/" + b"x" * 90, b"\xff\xfe", b"files/\x1b[2J", b"", b"bundle.json",
    b"BUNDLE.JSON", b"./bundle.json", b"files/..", b"weights/vae.safetensors",
)  # fmt: skip


def rewritten(data: bytes, at: int, field: str, value: bytes) -> bytes:
    """A tar file with another field in the header at a place, its checksum put right as another program would."""
    block = bytearray(data[at : at + BLOCK])
    start, length = FIELDS[field]
    block[start : start + length] = value[:length].ljust(length, b"\0")
    if field != "checksum":
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block)
    return data[:at] + bytes(block) + data[at + BLOCK :]


def number(value: int, length: int) -> bytes:
    """A number as GNU tar writes one that octal digits do not hold: in base 256, two's complement."""
    return bytes([0x80]) + value.to_bytes(length - 1, "big", signed=True)


def headers(data: bytes) -> list[int]:
    """Where the headers of a bundle are."""
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        return [member.offset for member in tar]


def tar_change(rng: random.Random, data: bytes) -> tuple[str, bytes]:
    at, field = rng.choice(headers(data)), rng.choice(list(FIELDS))
    value = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 13)))
    if field in ("size", "mtime", "uid", "gid"):
        value = rng.choice([number(10**18, 12), number(-1, 12), b"77777777777", b"-1", b"0", b" 12 ", value])
    elif field == "type":
        value = bytes([rng.choice(TYPES)])
    elif field in ("name", "linkname", "prefix"):
        value = rng.choice(NAMES)
    return f"{field} of the header at {at} is {value!r}", rewritten(data, at, field, value)


def whole_changes(rng: random.Random, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Other forms of the file."""
    files = {"bundle.json": members_of(data)["bundle.json"], **members()}
    first, *rest = list(files.items())
    yield "gzip", gzip.compress(data)
    yield "a gzip bomb", gzip.compress(bytes(50_000_000))
    yield "pax headers", tarred({**files, "files/\u00e9": b""}, tarfile.PAX_FORMAT)
    yield "a global pax header of 1 GB", rewritten(rewritten(data, 0, "type", b"g"), 0, "size", b"07346545000")
    yield "a member twice", tarred({**files, "x": b""}).replace(b"\0" * 1024, data[headers(data)[1] :], 1)
    yield "a member more", tarred({**files, "files/" + "0" * 64: b"x"})
    yield "a member less", tarred(dict([first, *rest[:-1]]))
    yield "another order", tarred(dict([first, *rest[::-1]]))
    yield "the list last", tarred(dict([*rest, first]))
    yield "a long name", tarred({"bundle.json": files["bundle.json"], "files/" + "x" * 300: b""})
    yield "a zip file", b"PK\3\4" + data
    yield "nothing", b""
    yield "zeros", bytes(10_240)
    yield "more after its end", data + bytes(BLOCK)
    yield "an endless list", rewritten(data, 0, "size", number(10**18, 12))
    yield "a deep list", tarred({"bundle.json": b"[" * 200_000 + b"]" * 200_000})
    yield "a list of many lists", tarred({"bundle.json": b"[" + b"[]," * 200_000 + b"[]]"})
    yield "cut short", data[: rng.randrange(len(data))]


def members_of(data: bytes) -> dict[str, bytes]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        found = {member.name: tar.extractfile(member) for member in tar}
        return {name: stream.read() for name, stream in found.items() if stream}


def content_changes() -> Iterator[tuple[str, bytes]]:
    """Other files, in a bundle that agrees with itself in all."""
    for path, data in (
        ("model_index.json", json.dumps({**INDEX, "vae": ["os", "system"]}).encode()),
        ("model_index.json", json.dumps({**INDEX, "text_encoder": ["transformers", "X"]}).encode()),
        ("model_index.json", b"[" * 5000),
        ("vae/config.json", b'{"\\u0061uto_map": {"AutoModel": "x.Y"}}'),
        ("vae/diffusion_pytorch_model.safetensors", b"\xff" * 8 + b"{}"),
        ("vae/diffusion_pytorch_model.safetensors", b""),
    ):
        kept = dict(FILES)
        FILES[path] = data
        try:
            yield f"{path} is {data[:60]!r}", packed(listed())
        finally:
            FILES.clear()
            FILES.update(kept)


def tree(root: Path) -> dict[str, tuple[int, bytes | str]]:
    """Every file of a cache with its content, but for locks, and what a next try goes on with."""
    found: dict[str, tuple[int, bytes | str]] = {}
    for folder, _, names in os.walk(root):
        for path in (Path(folder) / name for name in names):
            place = path.relative_to(root)
            if place.parts[0] not in ("locks", "blobs", "digests"):  # the last: what was read of a blob
                content = os.readlink(path) if path.is_symlink() else path.read_bytes()
                found[str(place)] = (path.lstat().st_mtime_ns, content)
    return found


def attempt(store: Store, file: Path, data: bytes) -> None:
    """Import a bundle as `pipelines import` does, and look at what that left."""
    file.write_bytes(data)
    before = tree(store.root)
    try:
        moved = transfer.bring(store, str(file), transfer.Options())
    except DiffpipeError:
        assert tree(store.root) == before, f"changed: {set(tree(store.root).items()) ^ set(before.items())}"
        raise
    finally:
        file.unlink()
    try:
        assert standing(store, moved.entry.key).state in ("whole", "imported")
        environment = dict(os.environ)
        os.environ["DIFFPIPE_HOME"] = str(store.root)
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            pipelines.list_(json=True)
            pipelines.list_()
            pipelines.show(moved.entry.key)
            command = generate._make(moved.entry.key)
            with contextlib.suppress(SystemExit):
                command.main(["--help"], prog_name="diffpipe generate x", standalone_mode=False)
        os.environ.clear()
        os.environ.update(environment)
        assert flags
    finally:
        store.drop(moved.entry.key)


def cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    store, file = Store(folder / "cache"), folder / "bundle.tar"
    store.folder("pipelines")
    for name in ("names", "temporary", "blobs", "sources"):
        store.folder(name)
    kinds = {kind: listed(kind) for kind in ("folder", "hub")}
    for kind, value in kinds.items():
        yield Case(f"as it was exported, of a {kind}", partial(attempt, store, file, packed(value)))
    whole = packed(kinds["folder"])
    for what, data in (*whole_changes(rng, whole), *content_changes()):
        yield Case(what, partial(attempt, store, file, data))
    while True:
        kind = rng.choice(list(kinds))
        if rng.random() < 0.25:
            what, data = tar_change(rng, whole)
        else:
            what, value = changed(rng, kinds[kind], rng.choice(nodes(kinds[kind])))
            data = packed(rekeyed(value) if rng.random() < 0.5 else value)
        yield Case(what, partial(attempt, store, file, data))
