"""Framing: whole streams arrive unchanged however they are cut, damaged ones are refused."""

import struct
import zlib
from pathlib import Path

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import protos
from protos.errors import BadFrame, UnsupportedMedia
from protos.frames import MAX_HEADER_BYTES, FrameReader, Header, write_frames

SNAPSHOT, EMPTY = Header("snapshot", "float32", (1000,), 200), Header("snapshot", "float32", (0,), 0)
DATA = np.arange(1000, dtype="<f4")


def stream(header: Header = SNAPSHOT, data: np.ndarray = DATA, *, chunk_bytes: int = 900) -> bytes:
    return b"".join(bytes(piece) for piece in write_frames(header, memoryview(data), chunk_bytes=chunk_bytes))


def read(data: bytes, *, pieces: int = 2**20) -> tuple[Header, bytes]:
    memory = bytearray()

    def allocate(header: Header) -> memoryview:
        memory.extend(bytes(header.payload_bytes))
        return memoryview(memory)

    reader = FrameReader(allocate)
    for start in range(0, len(data), pieces):
        reader.feed(data[start : start + pieces])
    return reader.close(), bytes(memory)


@given(pieces=st.integers(1, 2000), chunk_bytes=st.integers(1, 5000))
def test_a_stream_arrives_unchanged_however_it_is_cut(pieces: int, chunk_bytes: int) -> None:
    """A reader that depends on where the network cuts the stream corrupts snapshots."""
    assert read(stream(chunk_bytes=chunk_bytes), pieces=pieces) == (SNAPSHOT, DATA.tobytes())


@pytest.mark.parametrize(
    ("header", "data"), [(Header("forecasts", "bfloat16", (2, 3), 9, (5, 40)), np.arange(6, dtype="<u2")), (EMPTY, DATA[:0])]
)
def test_headers_arrive_unchanged(header: Header, data: np.ndarray) -> None:
    """A worker would load the forecast of another horizon, or a network without parameters hang the reader."""
    assert read(stream(header, data))[0] == header


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


def chunk(offset: int, data: bytes, crc: int | None = None, length: int | None = None) -> bytes:
    crc = zlib.crc32(data) if crc is None else crc
    return struct.pack(">BBQBIBI", 0x93, 0xCF, offset, 0xCE, crc, 0xC6, len(data) if length is None else length) + data


HEAD = SNAPSHOT.pack()
WHOLE = DATA.tobytes()


@pytest.mark.parametrize(
    ("data", "field"),
    [
        (stream() + b"\0", "end"),
        (HEAD + chunk(0, WHOLE) + chunk(0, WHOLE), "chunks[1]"),
        (HEAD + chunk(8, WHOLE[8:]), "chunks[0]"),
        (HEAD + chunk(0, WHOLE[:8]) + chunk(0, WHOLE[:8]), "chunks[1]"),
        (HEAD + chunk(0, b"", length=2**32 - 1), "chunks[0]"),
        (HEAD + chunk(0, b""), "chunks[0]"),
        (HEAD + chunk(0, WHOLE, crc=1), "chunks[0].crc32"),
        (HEAD + chunk(0, WHOLE) + b"\x91\xce\0\0\0\x02", "end"),
        (HEAD + b"\x91\xce\0\0\0\0", "end"),
        (HEAD + b"\xc0", "chunks[0]"),
    ],
    ids=["trailing", "replay", "gap", "overlap", "lying-length", "empty", "checksum", "count", "short", "type"],
)
def test_a_lying_stream_is_refused_and_the_frame_named(data: bytes, field: str) -> None:
    """Someone who sends a malformed stream would not learn which frame is wrong, or would get it in."""
    with pytest.raises(BadFrame) as caught:
        read(data)
    assert caught.value.field == field


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"kind": "photo"}, "header.kind"),
        ({"dtype": "float64"}, "header.dtype"),
        ({"dtype": ["float32"]}, "header.dtype"),
        ({"shape": [10, 10]}, "header.shape"),
        ({"shape": [-1]}, "header.shape"),
        ({"shape": [2**60]}, "header.shape"),
        ({"shape": [True]}, "header.shape"),
        ({"horizons": [1]}, "header.horizons"),
        ({"step": None}, "header.step"),
        ({"step": 1.5}, "header.step"),
    ],
)
def test_a_wrong_header_is_refused_and_the_field_named(fields: dict[str, object], field: str) -> None:
    """A wrong header would be taken for another shape, or fail without saying why."""
    good = {"nowcast": 1, "kind": "snapshot", "dtype": "float32", "shape": [10], "step": 1}
    with pytest.raises(BadFrame) as caught:
        read(msgpack.packb({**good, **fields}))
    assert caught.value.field == field


def test_another_version_is_named_as_such() -> None:
    """A newer client would be told its bytes are garbage."""
    with pytest.raises(UnsupportedMedia, match="speaks 1"):
        read(msgpack.packb({"nowcast": 2}))


def test_an_endless_header_is_cut_off() -> None:
    """A client could fill the server's memory before any budget is checked."""
    with pytest.raises(BadFrame):
        read(b"\x81\xa7nowcast\xdb\xff\xff\xff\xff" + b"x" * (MAX_HEADER_BYTES + 10), pieces=1000)


def test_what_allocate_raises_reaches_the_caller() -> None:
    """A budget refused at the header would be lost, and the data read all the same."""

    def refuse(_: Header) -> memoryview:
        raise BadFrame("wrong length", field="header.shape")

    with pytest.raises(BadFrame, match="wrong length"):
        FrameReader(refuse).feed(stream())
