"""Headers of weights: what the libraries write is read as they mean it, and what nobody writes is refused."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffpipe.core.errors import CacheError, UsageError
from diffpipe.core.parsing import Misfit
from diffpipe.storage import tensor_headers
from diffpipe.storage.tensor_headers import TensorHeader, TensorInfo, parse, read_gguf, read_header, weigh


def written(path: Path, header: object, data: bytes) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


# safetensors


def test_a_file_that_the_library_writes(tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    tensors = {"a": np.zeros((2, 3), np.float32), "b.c": np.zeros((0, 4), np.int8), "d": np.array(7, np.int64)}
    save_file(tensors, tmp_path / "x.safetensors", {"format": "pt", "about": "ä"})
    header = read_header(tmp_path / "x.safetensors")
    assert {name: (one.dtype, one.shape, one.size) for name, one in header.tensors.items()} == {
        "a": ("F32", (2, 3), 24), "b.c": ("I8", (0, 4), 0), "d": ("I64", (), 8)
    }  # fmt: skip
    assert header.metadata == {"format": "pt", "about": "ä"}
    assert weigh(header.tensors.values()) == (7, 32, ("F32", "I64", "I8"))


TENSORS = st.dictionaries(
    st.text(min_size=1).filter(lambda name: name != "__metadata__"),
    st.builds(
        lambda dtype, shape, start: TensorInfo(dtype, tuple(shape), start, start + int(np.prod([1, *shape]))),
        st.sampled_from(["U8", "X9"]), st.lists(st.integers(0, 9), max_size=4), st.integers(0, 10**12),
    ),
)  # fmt: skip


@given(TENSORS, st.dictionaries(st.text(), st.text()))
def test_a_header_is_read_as_it_was_written(tensors: dict[str, TensorInfo], metadata: dict[str, str]) -> None:
    header = TensorHeader(tensors, metadata)
    assert parse(json.dumps(header.to_json()).encode()) == header


def test_a_dtype_that_nobody_knows_yet_is_kept(tmp_path: Path) -> None:
    header = {"w": {"dtype": "F3_NEW", "shape": [10], "data_offsets": [0, 4]}}
    tensor = read_header(written(tmp_path / "x.safetensors", header, bytes(4))).tensors["w"]
    assert (tensor.dtype, tensor.elements, tensor.size) == ("F3_NEW", 10, 4)


def test_packed_elements_take_whole_bytes() -> None:
    header = {"w": {"dtype": "F4", "shape": [3], "data_offsets": [0, 2]}}
    assert parse(json.dumps(header).encode(), 2).tensors["w"].size == 2


def tensor(**changed: object) -> dict[str, object]:
    return {"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changed}}


DAMAGED: list[object] = [
    b"", b"{", b"\xff\xfe{}", b"[]", b"7", b"[" * 50_000, b'{"w": NaN}',
    {"w": 7}, {"w": {}},
    tensor(dtype=7), tensor(dtype="F" * 200), tensor(dtype=None),
    tensor(shape="1"), tensor(shape=[1.0]), tensor(shape=[True]), tensor(shape=[-1]), tensor(shape=[2]),
    tensor(shape=[1] * 100), tensor(shape=[2**40, 2**40]), tensor(shape=[2**70]), tensor(shape=[None]),
    tensor(data_offsets=[4, 0]), tensor(data_offsets=[0]), tensor(data_offsets=[0, 2, 4]),
    tensor(data_offsets=[-4, 0]), tensor(data_offsets=[0, 8]), tensor(data_offsets=["0", "4"]),
    {**tensor(), "__metadata__": {"format": 7}}, {**tensor(), "__metadata__": "pt"},
]  # fmt: skip


@pytest.mark.parametrize("header", DAMAGED, ids=lambda header: str(header)[:60])
def test_what_is_no_header_is_refused(header: object, tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", header, bytes(4))
    with pytest.raises(CacheError, match=r"x\.safetensors in .* is not a complete safetensors file"):
        read_header(path)


def bytes_at(start: int, end: int) -> dict[str, object]:
    return {"dtype": "U8", "shape": [end - start], "data_offsets": [start, end]}


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": bytes_at(0, 8), "b": bytes_at(4, 12)},
        {"a": bytes_at(0, 12), "b": bytes_at(2, 4)},
        {"a": bytes_at(0, 4), "b": bytes_at(8, 12)},
        {"a": bytes_at(4, 12)},
        {"a": bytes_at(0, 12), "b": bytes_at(0, 12)},
    ],
    ids=["overlapping", "nested", "a hole", "a hole first", "twice"],
)
def test_tensors_that_do_not_follow_one_another_are_refused(tensors: dict[str, object], tmp_path: Path) -> None:
    """By the library too, which is asked here."""
    from safetensors import SafetensorError, safe_open

    path = written(tmp_path / "x.safetensors", tensors, bytes(12))
    with pytest.raises(SafetensorError):
        safe_open(path, framework="np").__enter__()
    with pytest.raises(CacheError, match="not a complete safetensors file"):
        read_header(path)


@pytest.mark.parametrize("change", [lambda data: data[:-1], lambda data: data + b"x", lambda data: data[:5]])
def test_a_file_of_another_length_is_refused(change: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = written(tmp_path / "x.safetensors", tensor(), bytes(4))
    assert read_header(path).tensors["w"].elements == 1
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(CacheError):
        read_header(path)


def test_a_header_without_bounds_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62))
    with pytest.raises(CacheError):
        read_header(path)
    monkeypatch.setattr(tensor_headers, "LARGEST_HEADER", 10)
    with pytest.raises(Misfit, match="larger than 10 bytes"):
        parse(json.dumps(tensor()).encode())


# GGUF: the gguf package, an implementation of its own, writes and reads


def write_gguf(path: Path, endian: str = "LITTLE", alignment: int = 0, version: int = 0) -> Path:
    import gguf

    writer = gguf.GGUFWriter(path, "flux", endianess=gguf.GGUFEndian[endian])
    if alignment:
        writer.add_custom_alignment(alignment)
    writer.add_string("a.text", "some text")
    writer.add_array("a.list", ["one", "two"])
    writer.add_array("numbers", [1.5, 2.5])
    writer.add_uint64("big", 2**40)
    writer.add_bool("yes", True)
    writer.add_tensor("w", np.zeros((3, 4), np.float32))
    writer.add_tensor("h", np.zeros(5, np.float16))
    packed = gguf.quantize(np.zeros((2, 64), np.float32), gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("q", packed, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("alignment", [0, 64, 256])
def test_a_gguf_file_as_its_own_package_reads_it(alignment: int, tmp_path: Path) -> None:
    import gguf

    path = write_gguf(tmp_path / "x.gguf", alignment=alignment)
    header = read_header(path)
    expected = {
        one.name: (one.tensor_type.name, tuple(int(n) for n in reversed(one.shape)), int(one.n_bytes))
        for one in gguf.GGUFReader(path).tensors
    }
    assert {name: (one.dtype, one.shape, one.size) for name, one in header.tensors.items()} == expected
    assert header.tensors["q"].shape == (2, 64)
    assert weigh([header.tensors["q"]]) == (128, 128 // 32 * 18, ("Q4_0",))


def test_a_gguf_file_of_the_other_end(tmp_path: Path) -> None:
    assert read_gguf(write_gguf(tmp_path / "x.gguf", "BIG")).tensors["w"].shape == (3, 4)


def test_sizes_of_blocks_are_those_of_ggml() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    known = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {kind: tensor_headers.GGML_TYPES[kind] for kind in known.keys() & tensor_headers.GGML_TYPES.keys()} == {
        kind: known[kind] for kind in known.keys() & tensor_headers.GGML_TYPES.keys()
    }
    assert len(known.keys() & tensor_headers.GGML_TYPES.keys()) >= 30


def changed(at: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda whole: whole[:at] + data + whole[at + len(data) :]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"", lambda data: data[:3], lambda data: data[:30], lambda data: data[:-40],
        changed(0, b"GGML"), changed(4, struct.pack("<I", 1)), changed(4, struct.pack("<I", 0)),
        changed(8, struct.pack("<Q", 2**40)), changed(16, struct.pack("<Q", 2**60)),
        changed(24, struct.pack("<Q", 2**62)),
        lambda data: data.replace(b"a.text" + struct.pack("<I", 8), b"a.text" + struct.pack("<I", 77)),
        lambda data: data.replace(b"\x01\0\0\0\0\0\0\0w", b"\x01\0\0\0\0\0\0\0h"),
        lambda data: data.replace(b"w" + struct.pack("<I", 2), b"w" + struct.pack("<I", 5)),
        lambda data: data.replace(b"w" + struct.pack("<IQ", 2, 4), b"w" + struct.pack("<IQ", 2, 2**62)),
        lambda data: data.replace(b"q" + struct.pack("<IQ", 2, 64), b"q" + struct.pack("<IQ", 2, 63)),
    ],
)  # fmt: skip
def test_a_damaged_gguf_file_is_refused(damage: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf")
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    assert path.read_bytes() != whole
    with pytest.raises(UsageError, match=r"x\.gguf is no GGUF file, or it is damaged"):
        read_header(path)


def test_lists_that_no_tokenizer_has_are_not_read(tmp_path: Path) -> None:
    """The gguf package keeps an array of numpy for each value: 5 GB for 12 MB of them."""
    path = write_gguf(tmp_path / "x.gguf")
    whole = path.read_bytes()
    count = tensor_headers.MOST_LISTED // 2 + 1
    more = b"".join(
        struct.pack("<Q", 1) + name + struct.pack("<IIQ", 9, 0, count) + bytes(count) for name in (b"a", b"b")
    )
    (keys,) = struct.unpack("<Q", whole[16:24])
    path.write_bytes(whole[:16] + struct.pack("<Q", keys + 2) + more + whole[24:])
    with pytest.raises(UsageError, match=r"x\.gguf is no GGUF file, or it is damaged"):
        read_header(path)


def test_more_tensors_than_any_model_has_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tensor_headers, "MOST_TENSORS", 50)
    entry = {"dtype": "F32", "shape": [], "data_offsets": [0, 4]}
    header = json.dumps(dict.fromkeys(map(str, range(tensor_headers.MOST_TENSORS + 1)), entry)).encode()
    (path := tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + bytes(4))
    with pytest.raises(CacheError, match=r"x\.safetensors"):
        read_header(path)


@given(st.binary(max_size=300))
def test_whatever_a_gguf_file_holds_is_read_or_refused(rest: bytes) -> None:
    import io

    reader: Any = tensor_headers._Reader(io.BytesIO(b"GGUF" + struct.pack("<IQQ", 3, 2, 2) + rest))
    with suppress(Misfit):
        tensor_headers._gguf(reader, 24 + len(rest))
