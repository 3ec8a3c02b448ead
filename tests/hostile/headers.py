"""Headers of weights, safetensors and GGUF: what their formats forbid, and real ones with something changed."""

from __future__ import annotations

import functools
import json
import math
import random
import struct
from collections.abc import Iterator
from pathlib import Path

from diffpipe.core.parsing import LARGEST
from diffpipe.storage.tensor_headers import ALIGNMENT, BITS, GGML_TYPES, TensorHeader, read_gguf, read_header
from hostile import values
from hostile.runner import Case

CASES = 500

GOOD = {
    "a": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]},
    "b": {"dtype": "U8", "shape": [8], "data_offsets": [24, 32]},
}
SIZE = 32
TEXT = json.dumps(GOOD)


def of_a(**changes: object) -> dict[str, object]:
    return {**GOOD, "a": {**GOOD["a"], **changes}}


# What the format's specification forbids, with the bytes of the header where it is no JSON.
FORBIDDEN: dict[str, object] = {
    "overlap": of_a(data_offsets=[8, 32]), "hole": of_a(shape=[1, 3], data_offsets=[0, 12]),
    "in another": of_a(data_offsets=[25, 30]),
    "negative offset": of_a(data_offsets=[-24, 0]), "end before begin": of_a(data_offsets=[24, 0]),
    "beyond": of_a(data_offsets=[0, 10**30]),
    "offsets of one": of_a(data_offsets=[0]), "offsets of three": of_a(data_offsets=[0, 24, 24]),
    "no offsets": of_a(data_offsets=None),
    "shape of 10**400": of_a(shape=[10**400]), "shape of bits": of_a(shape=[2**40, 2**40]),
    "negative shape": of_a(shape=[-2, -3]),
    "no shape": of_a(shape=None), "no dtype": of_a(dtype=None), "dtype of a number": of_a(dtype=5),
    "shape of a truth": of_a(shape=[True, 6]),
    "shape of a fraction": of_a(shape=[2.0, 3.0]), "too many axes": of_a(shape=[1] * 5000),
    "tensor a list": {**GOOD, "a": []},
    "metadata a list": {**GOOD, "__metadata__": []}, "metadata of numbers": {**GOOD, "__metadata__": {"x": 5}},
    "two of a name": f"{TEXT[:-1]}, {TEXT[1:]}".encode(),
    "two dtypes": TEXT.replace('"dtype"', '"dtype": "U8", "dtype"', 1).encode(),
    "a list": [GOOD], "begins with a space": b" " + TEXT.encode(),
    "begins with a mark": b"\xef\xbb\xbf" + TEXT.encode(),
    "nothing": b"", "deep": b'{"a":' * 20_000, "no UTF-8": b'{"a\xff": 1}', "NaN": b'{"a": NaN}',
    "text after it": TEXT.encode() + b"x",
    "digits": b'{"a": ' + b"9" * 5000 + b"}", "none but data": {}, "UTF-16": TEXT.encode("utf-16"),
}  # fmt: skip
LENGTHS = (0, 1, 2**31, 2**63, 2**64 - 1, 100_000_001, 10**9)


def cases(rng: random.Random, folder: Path) -> Iterator[Case]:
    path = folder / "x.safetensors"
    for what, header in FORBIDDEN.items():
        yield Case(f"safetensors: {what}", functools.partial(_forbidden, path, header))
    for length in LENGTHS:
        yield Case(f"safetensors: a header of {length} bytes", functools.partial(_of_length, path, length))
    yield Case("safetensors: as it should be", functools.partial(_good, path))
    while True:
        draw = rng.random()
        if draw < 0.45:
            header = values.json_bytes(values.changed(GOOD, rng), rng)
            yield Case(f"safetensors {header[:300]!r}", functools.partial(_sound, path, written(header, SIZE)))
        elif draw < 0.6:
            data = values.bytes_changed(written(TEXT.encode(), SIZE), rng)
            yield Case(f"safetensors {data!r}", functools.partial(_sound, path, data))
        else:
            data = _gguf(rng)
            data = values.bytes_changed(data, rng) if rng.random() < 0.7 else data
            yield Case(f"gguf {data.hex()}", functools.partial(_sound, folder / "x.gguf", data))


def written(header: bytes, size: int) -> bytes:
    return struct.pack("<Q", len(header)) + header + bytes(size)


def _good(path: Path) -> None:
    path.write_bytes(written(TEXT.encode(), SIZE))
    assert set(read_header(path).tensors) == set(GOOD)


def _forbidden(path: Path, header: object) -> None:
    """Raises what `read_header` raises; AssertionError where it takes the file."""
    data = header if isinstance(header, bytes) else _json(header)
    path.write_bytes(written(data, SIZE))
    raise AssertionError(f"taken: {read_header(path)}")


def _json(header: object) -> bytes:
    return json.dumps(header).encode()


def _of_length(path: Path, length: int) -> None:
    path.write_bytes(struct.pack("<Q", length) + _json(GOOD) + bytes(SIZE))
    raise AssertionError(f"taken: {read_header(path)}")


def _sound(path: Path, data: bytes) -> None:
    """What is taken is as the specifications say: within the file, sizes those of shape and type, in safetensors
    without a gap from the first byte to the last."""
    path.write_bytes(data)
    header = read_gguf(path) if path.suffix == ".gguf" else read_header(path)
    tensors = sorted(header.tensors.values(), key=lambda one: (one.start, one.end))
    assert all(0 <= one.start <= one.end <= len(data) and math.prod(one.shape) <= LARGEST for one in tensors)
    if path.suffix == ".gguf":
        return
    assert all(one.size * 8 >= one.elements * BITS[one.dtype] for one in tensors if one.dtype in BITS)
    ends = [0, *(one.end for one in tensors)]
    assert [one.start for one in tensors] == ends[:-1]
    assert ends[-1] == len(data) - 8 - struct.unpack("<Q", data[:8])[0]
    assert isinstance(header, TensorHeader)


def _gguf(rng: random.Random) -> bytes:
    """A GGUF file with some keys and tensors; numbers are extreme ones now and then."""

    def number(kind: str, usual: int) -> bytes:
        top = 2 ** (8 * struct.calcsize(kind))
        odd = rng.choice((0, 1, 10**5, top // 2, top - 1))
        return struct.pack("<" + kind, usual if rng.random() < 0.93 else odd)

    def text(given: bytes) -> bytes:
        return number("Q", len(given)) + given

    keys = [
        (b"general.alignment", 4, number("I", ALIGNMENT)),
        (b"x\x1b[2J", 8, text(b"\xff")),
        (b"l", 9, number("I", 4) + number("Q", 2) + bytes(8)),
    ]
    listed = rng.sample(keys, rng.randrange(4))
    kind = rng.choice([*GGML_TYPES, 99])
    tensors = [
        (b"t%d" % one, (rng.choice((1, 32, 256)),) * rng.randrange(1, 5), kind) for one in range(rng.randrange(3))
    ]
    data = b"GGUF" + number("I", 3) + number("Q", len(tensors)) + number("Q", len(listed))
    data += b"".join(text(name) + number("I", kind) + value for name, kind, value in listed)
    for name, shape, kind in tensors:
        data += (
            text(name)
            + number("I", len(shape))
            + b"".join(number("Q", one) for one in shape)
            + number("I", kind)
            + number("Q", 0)
        )
    return data + bytes(rng.choice((0, 64, 4096)))
