"""What files of weights say of their tensors, parsed and checked once: the headers of safetensors and GGUF files."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, NamedTuple

from ..core.canonical import JsonObject, JsonValue
from ..core.errors import CacheError, UsageError
from ..core.parsing import LARGEST, Fields, Misfit, parse_json
from .opening import open_regular

LARGEST_HEADER = 100_000_000  # bytes; the limit that the safetensors format itself sets
MOST_AXES = 64  # of a tensor: torch's own limit
MOST_TENSORS = 100_000  # of a file; one with a model's 16,000 experts has half of that
LENGTH = 8  # bytes at the beginning of a safetensors file, in which its header's length is
METADATA = "__metadata__"  # the entry of a safetensors header that is no tensor
# Bits of an element (safetensors/src/tensor.rs, Dtype). Another dtype is kept as it is written, its size not checked.
BITS = {
    "F4": 4,
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E5M2", "F8_E4M3", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """A tensor of a file: its dtype as the file's format calls it, its shape, and where its bytes begin and end,
    counted from the first byte after the header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int

    @property
    def elements(self) -> int:
        return math.prod(self.shape)

    @property
    def size(self) -> int:
        """Bytes in the file."""
        return self.end - self.start


@dataclass(frozen=True)
class TensorHeader:
    """The tensors of a file by name, and what else its writer noted."""

    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> JsonObject:
        """The header as a safetensors file has it; `parse` reads it."""
        noted: JsonObject = {METADATA: dict(self.metadata)} if self.metadata else {}
        return noted | {
            name: {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [one.start, one.end]}
            for name, one in self.tensors.items()
        }


class Weight(NamedTuple):
    """What tensors hold together: parameters (elements), bytes, and their dtypes, sorted."""

    parameters: int
    bytes: int
    dtypes: tuple[str, ...]


def weigh(tensors: Iterable[TensorInfo]) -> Weight:
    given = list(tensors)
    dtypes = tuple(sorted({one.dtype for one in given}))
    return Weight(sum(one.elements for one in given), sum(one.size for one in given), dtypes)


def read_header(path: Path) -> TensorHeader:
    """The header of a .safetensors or .gguf file. Raises what `read_safetensors` and `read_gguf` raise."""
    return read_gguf(path) if path.suffix == ".gguf" else read_safetensors(path)


# safetensors: 8 bytes little-endian length of the header, the header (JSON), the tensors
# (huggingface/safetensors, README "Format")


def read_safetensors(path: Path) -> TensorHeader:
    """The header of a safetensors file. Raises CacheError if the file is cut short or is not safetensors."""
    try:
        with open_regular(path) as stream:
            length = header_length(stream.read(LENGTH))
            return parse(stream.read(length), path.stat().st_size - LENGTH - length)
    except Misfit as error:
        raise CacheError(
            f"{path.name} in {path.parent.name} is not a complete safetensors file", "fetch or copy the file again"
        ) from error


def header_length(data: bytes) -> int:
    """The length (bytes) of the header that a safetensors file's first eight bytes announce. Raises Misfit."""
    if len(data) < LENGTH:
        raise Misfit("it is shorter than the length of its header")
    length: int = struct.unpack("<Q", data[:LENGTH])[0]
    if length > LARGEST_HEADER:
        raise Misfit(f"its header is larger than {LARGEST_HEADER} bytes")
    return length


def parse(data: bytes, size: int | None = None) -> TensorHeader:
    """A safetensors header. `size`: the bytes of tensors that follow it, all of which it must account for, where it
    is known. Raises Misfit."""
    fields = Fields(_json_of(data))
    if len(fields.value) > MOST_TENSORS:
        raise Misfit(f"it has more than {MOST_TENSORS} tensors")
    metadata = fields.object(METADATA)
    header = TensorHeader(
        {name: _tensor(tensor) for name, tensor in _tensors(fields)},
        {name: metadata.text(name, most=LARGEST_HEADER) for name in metadata.names()},
    )
    if size is not None:
        _check_tiling(header.tensors.values(), size)
    return header


def _json_of(data: bytes) -> JsonValue:
    """The header as the format has it: UTF-8 from its { on, no name twice in an object. Others read such differently:
    what is checked here would not be what they load. Raises Misfit."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise Misfit("its header is no UTF-8") from error
    if not text.startswith("{"):
        raise Misfit("its header does not begin with {")
    return parse_json(text, LARGEST_HEADER, "its header", twice=False)


def _check_tiling(tensors: Iterable[TensorInfo], size: int) -> None:
    """Raises Misfit unless the tensors follow one another from the first byte to the last, as the format demands
    (safetensors/src/tensor.rs, Metadata::validate): two in one place, or bytes of none, are no weights."""
    end = 0
    for one in sorted(tensors, key=lambda one: (one.start, one.end)):
        if one.start != end:
            raise Misfit(f"a tensor begins at {one.start}, where the one before ends at {end}")
        end = one.end
    if size != end:
        raise Misfit(f"its tensors end at {end} and the file at {size}")


def _tensors(fields: Fields) -> Iterator[tuple[str, Fields]]:
    for name in fields.names():
        if name != METADATA:
            yield name, Fields(fields.value[name], name if name.isprintable() and len(name) < 100 else "a tensor")


def _tensor(fields: Fields) -> TensorInfo:
    dtype, shape = fields.text("dtype", most=100), _whole_numbers(fields, "shape", MOST_AXES)
    offsets = _whole_numbers(fields, "data_offsets", 2)
    if len(offsets) != 2 or offsets[0] > offsets[1]:
        raise Misfit(f"{fields.where} has no place in the file")
    tensor = TensorInfo(dtype, shape, *offsets)
    if tensor.elements > LARGEST or (dtype in BITS and (tensor.elements * BITS[dtype] + 7) // 8 != tensor.size):
        raise Misfit(f"{fields.where} has {tensor.size} bytes, which are not those of its shape")
    return tensor


def _whole_numbers(fields: Fields, name: str, most: int) -> tuple[int, ...]:
    found = fields.values(name)
    if len(found) > most:
        raise Misfit(f"{fields.where}.{name} has more than {most} numbers")
    numbers = tuple(one for one in found if isinstance(one, int) and not isinstance(one, bool) and 0 <= one <= LARGEST)
    if len(numbers) != len(found):
        raise Misfit(f"{fields.where}.{name} has what is no whole number")
    return numbers


# GGUF: "GGUF", version, counts of tensors and of keys; the keys with their values; name, shape, type and place of each
# tensor; the tensors, each at a multiple of an alignment (ggml-org/ggml, docs/gguf.md)

GGUF = b"GGUF"
GGUF_VERSIONS = (2, 3)
ALIGNMENT = 32  # bytes, where the key general.alignment has no other
DIMENSIONS = 4  # GGML_MAX_DIMS
VALUES = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}  # as struct's
TEXT, LIST = 8, 9  # the types of values that are no number
# Of all lists of a file: the gguf package takes 400 bytes for each. Gemma 3's tokenizer has 1,300,000.
MOST_LISTED = 2_000_000
# Name, elements of a block, and its bytes, by the number of the type (ggml.h, ggml_type; the sizes are of the blocks'
# structs in ggml-common.h).
GGML_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 40), 10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8), 28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17), 40: ("NVFP4", 64, 36), 41: ("Q1_0", 128, 18),
}  # fmt: skip


def read_gguf(path: Path) -> TensorHeader:
    """The tensors of a GGUF file, their dtypes as ggml calls them, their shapes as torch orders them.

    Raises UsageError for a file that is damaged or no GGUF file.
    """
    try:
        with open_regular(path) as stream:
            return _gguf(_Reader(stream), path.stat().st_size)
    except Misfit as error:
        raise UsageError(f"{path.name} is no GGUF file, or it is damaged", "fetch it again") from error


class _Reader:
    """Numbers and texts of a file, in order, at most LARGEST_HEADER bytes of them. Raises Misfit at its end."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.stream = stream
        self.position = self.listed = 0
        self.order = "<"

    def take(self, count: int) -> bytes:
        self.position += count
        if self.position > LARGEST_HEADER:
            raise Misfit(f"its header is larger than {LARGEST_HEADER} bytes")
        data = self.stream.read(count)
        if len(data) < count:
            raise Misfit("it is cut short")
        return data

    def number(self, kind: str) -> int:
        """One of struct's kinds of whole numbers."""
        value: int = struct.unpack(self.order + kind, self.take(struct.calcsize(f"={kind}")))[0]
        return value

    def count(self, most: int = MOST_TENSORS) -> int:
        found = self.number("Q")
        if found > most:
            raise Misfit(f"it announces {found} entries")
        return found

    def text(self) -> str:
        return self.take(self.count(LARGEST_HEADER)).decode(errors="replace")

    def skip_value(self, kind: int, depth: int = 0) -> None:
        if kind in VALUES:
            self.take(struct.calcsize(f"={VALUES[kind]}"))
        elif kind == TEXT:
            self.text()
        elif kind == LIST and depth < DIMENSIONS:
            inner, count = self.number("I"), self.count(MOST_LISTED)
            self.listed += count
            if self.listed > MOST_LISTED:
                raise Misfit(f"its lists have more than {MOST_LISTED} values")
            if inner in VALUES:
                self.take(count * struct.calcsize(f"={VALUES[inner]}"))
            else:
                for _ in range(count):
                    self.skip_value(inner, depth + 1)
        else:
            raise Misfit(f"it has a value of an unknown type ({kind})")


def _gguf(reader: _Reader, size: int) -> TensorHeader:
    if reader.take(len(GGUF)) != GGUF:
        raise Misfit("it does not begin as GGUF does")
    version = reader.number("I")
    if not version & 0xFFFF:  # of a machine that has the other end first
        reader.order, version = ">", version >> 24 | (version >> 8 & 0xFF00)
    if version not in GGUF_VERSIONS:
        raise Misfit(f"it is of version {version}")
    tensors, keys = reader.count(), reader.count()
    alignment = _alignment(reader, keys)
    listed = [_gguf_tensor(reader) for _ in range(tensors)]
    data = reader.position + -reader.position % alignment
    found = dict(listed)
    if len(found) < tensors or any(data + one.end > size for one in found.values()):
        raise Misfit("its tensors are not where it says")
    return TensorHeader(found)


def _alignment(reader: _Reader, keys: int) -> int:
    """Read past the keys and values; the alignment of the tensors (bytes)."""
    alignment = ALIGNMENT
    for _ in range(keys):
        name, kind = reader.text(), reader.number("I")
        if name == "general.alignment" and VALUES.get(kind) == "I":
            alignment = reader.number("I")
        else:
            reader.skip_value(kind)
    if not alignment or alignment & (alignment - 1):
        raise Misfit(f"its alignment is {alignment}")
    return alignment


def _gguf_tensor(reader: _Reader) -> tuple[str, TensorInfo]:
    name, axes = reader.text(), reader.number("I")
    if axes > DIMENSIONS:
        raise Misfit(f"a tensor has {axes} axes")
    shape = tuple(reader.number("Q") for _ in range(axes))[::-1]
    kind, start = reader.number("I"), reader.number("Q")
    dtype, block, size = GGML_TYPES.get(kind, (f"type {kind}", 1, 0))
    elements = math.prod(shape)
    if max(elements, start) > LARGEST or elements % block:
        raise Misfit(f"a tensor has {elements} elements, in blocks of {block}")
    return name, TensorInfo(dtype, shape, start, start + elements // block * size)
