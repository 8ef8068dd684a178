"""Streams of frames, as whoever they are sent to reads them."""

from protos.frames import FrameReader, Header


def read(stream: bytes, *, pieces: int = 2**20) -> tuple[Header, bytearray]:
    """The header and payload of a whole stream, which comes in pieces of so many bytes."""
    payload = bytearray()

    def allocate(header: Header) -> memoryview:
        payload.extend(bytes(header.payload_bytes))
        return memoryview(payload)

    reader = FrameReader(allocate)
    for start in range(0, len(stream), pieces):
        reader.feed(stream[start : start + pieces])
    return reader.close(), payload
