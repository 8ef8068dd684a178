"""Framing: whole streams arrive unchanged however they are cut, damaged ones are refused; lying ones are in tests/hostile."""

from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from streams import read

import protos
from protos.errors import BadFrame
from protos.frames import Header, write_frames

SNAPSHOT = Header("snapshot", "float32", (1000,), 200)
DATA = np.arange(1000, dtype="<f4")


def stream(header: Header = SNAPSHOT, data: np.ndarray = DATA, *, chunk_bytes: int = 900) -> bytes:
    return b"".join(bytes(piece) for piece in write_frames(header, memoryview(data), chunk_bytes=chunk_bytes))


@given(size=st.integers(0, 1000), pieces=st.integers(1, 2000), chunk_bytes=st.integers(1, 5000))
def test_a_stream_arrives_unchanged_however_it_is_cut(size: int, pieces: int, chunk_bytes: int) -> None:
    """A reader that depends on where the network cuts the stream corrupts snapshots; one without parameters could hang it."""
    header = Header("snapshot", "float32", (size,), 200)
    assert read(stream(header, DATA[:size], chunk_bytes=chunk_bytes), pieces=pieces) == (header, DATA[:size].tobytes())


def test_the_stream_is_plain_msgpack() -> None:
    """A client in another language could not read the stream with its msgpack library."""
    unpacker = msgpack.Unpacker()
    unpacker.feed(stream())
    header, *chunks, end = unpacker
    assert header["shape"] == [1000]
    assert b"".join(data for _, _, data in chunks) == DATA.tobytes()
    assert end == [len(chunks)]


def test_the_example_of_the_specification_is_exact() -> None:
    """WIRE.md would lie to whoever writes a client from it."""
    text = (Path(protos.__file__).parent / "WIRE.md").read_text()
    example = text.split("(header, chunk prelude, data, end):")[1].split("##")[0]
    expected = stream(Header("snapshot", "float32", (4,), 200), np.ones(4, "<f4"))
    assert bytes.fromhex("".join(example.split())) == expected


@given(position=st.integers(60, len(stream()) - 1), flip=st.integers(1, 255))
def test_a_changed_byte_never_passes(position: int, flip: int) -> None:
    """Corrupted weights would enter the history."""
    data = bytearray(stream())
    data[position] ^= flip
    with pytest.raises(BadFrame):
        read(bytes(data))


@given(length=st.integers(0, len(stream()) - 1))
def test_a_truncated_stream_never_passes(length: int) -> None:
    """Half a snapshot would count as one."""
    with pytest.raises(BadFrame, match="truncated"):
        read(stream()[:length])
