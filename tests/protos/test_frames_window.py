"""Receiving into the reader's window is the same as feeding it."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.errors import BadFrame
from protos.frames import FrameReader, Header, framed_bytes, write_frames

DATA = np.arange(200, dtype="<f4")
HEADER = Header("snapshot", "float32", (200,), 7)


def _receive(stream: bytes, sizes: list[int]) -> bytes:
    """Read a stream as a socket would be read: as much as it has, at most the window."""
    memory = bytearray(800)
    reader = FrameReader(lambda _: memoryview(memory))
    at = 0
    while at < len(stream):
        window = reader.window()
        assert window.nbytes
        taken = min(window.nbytes, len(stream) - at, sizes[at % len(sizes)])
        window[:taken] = stream[at : at + taken]
        reader.advance(taken)
        at += taken
    assert reader.close() == HEADER
    return bytes(memory)


@settings(deadline=None)
@given(chunk_bytes=st.integers(1, 1000), sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=5))
def test_a_stream_arrives_unchanged(chunk_bytes: int, sizes: list[int]) -> None:
    """Snapshots received in place would be torn where a read ends."""
    stream = b"".join(bytes(piece) for piece in write_frames(HEADER, memoryview(DATA), chunk_bytes=chunk_bytes))
    assert len(stream) == framed_bytes(HEADER, chunk_bytes=chunk_bytes)
    assert _receive(stream, sizes) == DATA.tobytes()


@settings(deadline=None)
@given(position=st.integers(0, 1000), flip=st.integers(1, 255), sizes=st.lists(st.integers(1, 1000), min_size=1, max_size=5))
def test_damage_is_found(position: int, flip: int, sizes: list[int]) -> None:
    """A damaged snapshot received in place would pass for whole: here one byte of the data or of what follows it."""
    stream = bytearray(b"".join(bytes(piece) for piece in write_frames(HEADER, memoryview(DATA), chunk_bytes=180)))
    start = len(HEADER.pack())
    stream[start + position % (len(stream) - start)] ^= flip
    with pytest.raises(BadFrame):
        _receive(bytes(stream), sizes)
