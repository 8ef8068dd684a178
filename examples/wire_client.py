"""A client of the HTTP API with nothing but msgpack and numpy, to translate into another language: see protos/WIRE.md.

nowcast-server run &
python examples/wire_client.py http://127.0.0.1:8440
"""

import json
import struct
import sys
import urllib.request
import zlib
from typing import Any

import msgpack
import numpy as np

MEDIA, CHUNK = "application/vnd.nowcast.frames", 2**20
CONTEXT, INTERVAL = 5, 10


def call(method: str, path: str, body: bytes = b"", media: str = "application/json") -> bytes:
    """Make one call; if the server answers with an error, print it and exit."""
    request = urllib.request.Request(f"{sys.argv[1]}{path}", body or None, {"content-type": media}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return bytes(answer.read())
    except urllib.error.HTTPError as error:
        raise SystemExit(f"{method} {path}: {error.code} {error.read().decode()}") from None


def frames(step: int, vector: np.ndarray[Any, np.dtype[np.float32]]) -> bytes:
    """A snapshot (n,) as a stream of frames: a header, chunks with checksums, an end."""
    header = {"nowcast": 1, "kind": "snapshot", "dtype": "float32", "shape": [len(vector)], "step": step}
    data, stream = vector.astype("<f4").tobytes(), [msgpack.packb(header)]
    starts = range(0, len(data), CHUNK)
    for start in starts:
        piece = data[start : start + CHUNK]
        prelude = struct.pack(">BBQBIBI", 0x93, 0xCF, start, 0xCE, zlib.crc32(piece), 0xC6, len(piece))
        stream += [prelude, piece]
    return b"".join([*stream, struct.pack(">BBI", 0x91, 0xCE, len(starts))])


def forecasts(stream: bytes) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A stream of frames as forecasts (horizons, n)."""
    unpacker = msgpack.Unpacker(max_buffer_size=len(stream))
    unpacker.feed(stream)
    header, *chunks, end = unpacker
    assert end == [len(chunks)], "the stream is truncated"
    assert all(zlib.crc32(data) == checksum for _, checksum, data in chunks), "a chunk is damaged"
    return np.frombuffer(b"".join(data for _, _, data in chunks), "<f4").reshape(header["shape"])


# A linear layer of 3 inputs and 2 outputs, weights and bias: neurons 0-2 are inputs, 3-4 outputs, 5 is the bias's own source.
wiring = {
    "parameters": [["weight", [2, 3]], ["bias", [2]]],
    "neurons": 6,
    "blocks": [[1, 0, 3, 3, 2, 0, 0, 0, 1, 3, 1, 0], [2, 5, 1, 3, 2, 0, 1, 0, 0, 1, 1, 0]],
}
call("PUT", "/v1/jobs/from-scratch", json.dumps({"wiring": wiring, "context": CONTEXT, "forecaster": "linear"}).encode())
drift = np.linspace(-1, 1, 8, dtype=np.float32)
steps = [INTERVAL * (index + 1) for index in range(CONTEXT)]
for step in steps:
    call("PUT", f"/v1/jobs/from-scratch/snapshots/{step}", frames(step, drift * step), MEDIA)
asked = {"context": steps, "horizons": [1, 4], "dtype": "float32"}
answer = forecasts(call("POST", "/v1/jobs/from-scratch/nowcasts", json.dumps(asked).encode()))
call("POST", "/v1/jobs/from-scratch/finish", json.dumps({"step": steps[-1]}).encode())
for horizon, row in zip(asked["horizons"], answer, strict=True):
    print(f"in {horizon} intervals:", " ".join(f"{value:.3f}" for value in row))
