"""Framing: one tensor as a stream of msgpack objects, checked chunk by chunk. WIRE.md defines the format.

    header            a msgpack map, at most 64 KiB
    chunk, chunk, …   [offset, crc32, bytes], a fixed 20-byte prelude and then the data
    end               [number of chunks]

The prelude's fields have fixed widths (still plain msgpack), so that a reader can receive the data straight into place: one
copy from the socket's buffer into the tensor, never a second buffer of the tensor's size.
"""

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final, Self

import msgpack

from protos.errors import BadFrame, UnsupportedMedia

VERSION: Final = 1
MEDIA_TYPE: Final = "application/vnd.nowcast.frames"
DTYPE_BYTES: Final = {"float32": 4, "float16": 2, "bfloat16": 2}
KINDS: Final = ("snapshot", "forecasts")
MAX_HEADER_BYTES: Final = 64 * 1024
MAX_CHUNK_BYTES: Final = 16 * 1024 * 1024
CHUNK_BYTES: Final = 1024 * 1024  # stays in cache between copy and checksum

_CHUNK = struct.Struct(">BBQBIBI")  # 0x93 | 0xcf offset u64 | 0xce crc32 u32 | 0xc6 length u32
_END = struct.Struct(">BBI")  # 0x91 | 0xce chunks u32
_ARRAY_1, _ARRAY_3, _UINT64, _UINT32, _BIN32 = 0x91, 0x93, 0xCF, 0xCE, 0xC6


@dataclass(frozen=True, slots=True)
class Header:
    """What a stream carries."""

    kind: str  # `snapshot` (shape (n,)) or `forecasts` (shape (len(horizons), n))
    dtype: str  # `float32`, `float16` or `bfloat16`, little-endian
    shape: tuple[int, ...]  # of the tensor, row major
    step: int  # training step of the snapshot, or of the last snapshot a forecast was made from
    horizons: tuple[int, ...] = ()  # for forecasts, the horizon of each row, in intervals
    progress: Any = None  # of the run, with a snapshot; as it came, unchecked, or None
    request: Any = None  # for a forecast from the snapshot, likewise

    @property
    def payload_bytes(self) -> int:
        return math.prod(self.shape) * DTYPE_BYTES[self.dtype]

    def pack(self) -> bytes:
        fields = {"kind": self.kind, "dtype": self.dtype, "shape": self.shape, "step": self.step}
        if self.kind == "forecasts":
            fields["horizons"] = self.horizons
        fields |= {name: value for name in ("progress", "request") if (value := getattr(self, name)) is not None}
        return bytes(msgpack.packb({"nowcast": VERSION, **fields}))

    @classmethod
    def unpack(cls, data: Any) -> Self:
        """Read the header map, trusting nothing: BadFrame if a field is missing or wrong, UnsupportedMedia for another protocol
        version. Unknown keys are ignored, so that later versions may add some.
        """
        if not isinstance(data, dict) or "nowcast" not in data:
            raise BadFrame("the stream must open with a header map that has the key 'nowcast'", field="header")
        if data["nowcast"] != VERSION:
            raise UnsupportedMedia(f"protocol version {data['nowcast']!r}; this side speaks {VERSION}", field="header.nowcast")
        if data.get("kind") not in KINDS:
            raise BadFrame(f"kind must be one of {KINDS}", field="header.kind")
        if not isinstance(data.get("dtype"), str) or data["dtype"] not in DTYPE_BYTES:
            raise BadFrame(f"dtype {data.get('dtype')!r} is not one of {tuple(DTYPE_BYTES)}", field="header.dtype")
        shape = _integers(data.get("shape"), field="header.shape", length=2 if data["kind"] == "forecasts" else 1)
        horizons = _integers(data.get("horizons", []), field="header.horizons")
        if len(horizons) != (shape[0] if data["kind"] == "forecasts" else 0):
            raise BadFrame("horizons must name each row of the forecasts, and only those", field="header.horizons")
        (step,) = _integers([data.get("step")], field="header.step")
        return cls(data["kind"], data["dtype"], shape, step, horizons, data.get("progress"), data.get("request"))


def _integers(values: Any, *, field: str, length: int | None = None) -> tuple[int, ...]:
    fine = isinstance(values, list) and all(type(value) is int and 0 <= value < 2**48 for value in values)
    if not fine or (length is not None and len(values) != length):
        raise BadFrame(f"{field} must be {length or 'a list of'} integers from 0 to 2^48", field=field)
    return tuple(values)


def write_frames(header: Header, payload: memoryview, *, chunk_bytes: int = CHUNK_BYTES) -> Iterator[bytes | memoryview]:
    """Frame `payload` (the tensor's bytes) for sending; the data is yielded as views, never copied."""
    payload = payload.cast("B")
    if payload.nbytes != header.payload_bytes:
        raise ValueError(f"a payload of {payload.nbytes} bytes for a header that says {header.payload_bytes}")
    yield header.pack()
    chunks = 0
    for offset in range(0, payload.nbytes, chunk_bytes):
        data = payload[offset : offset + chunk_bytes]
        yield _CHUNK.pack(_ARRAY_3, _UINT64, offset, _UINT32, zlib.crc32(data), _BIN32, data.nbytes)
        yield data
        chunks += 1
    yield _END.pack(_ARRAY_1, _UINT32, chunks)


def framed_bytes(header: Header) -> int:
    """Length of the stream `write_frames` makes of a tensor."""
    chunks = -(-header.payload_bytes // CHUNK_BYTES)
    return len(header.pack()) + chunks * _CHUNK.size + header.payload_bytes + _END.size


class FrameReader:
    """Reads one stream as its bytes arrive, in pieces of any size, straight into the tensor's memory.

    `allocate` is called once with the header, before any data is read; it checks that against what is expected and returns writable
    memory of `header.payload_bytes` bytes, or raises what shall end the stream. The memory must not be used before `close()` has
    returned: only then is the stream known to be whole.
    """

    def __init__(self, allocate: Callable[[Header], memoryview]) -> None:
        self._allocate = allocate
        self._unpacker: msgpack.Unpacker | None = msgpack.Unpacker(
            max_buffer_size=MAX_HEADER_BYTES, max_map_len=64, max_array_len=4096, max_str_len=4096, max_bin_len=0, max_ext_len=0
        )
        self._fed = 0
        self._pending = bytearray()  # a prelude or end frame not yet complete: at most 20 bytes
        self._memory = memoryview(b"")
        self.received_bytes = 0  # of the tensor, in place
        self._chunk_left = 0
        self._chunk_crc = self._expected_crc = 0
        self._chunks = 0
        self._ended = False
        self.header: Header | None = None

    def feed(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the stream. After a BadFrame the reader must not be used again."""
        view = memoryview(data)
        if self._unpacker is not None:
            view = self._read_header(view)
        while view.nbytes:
            if self._ended:
                raise BadFrame("bytes follow the end frame", field="end")
            view = self._read_data(view) if self._chunk_left else self._read_prelude(view)

    def close(self) -> Header:
        """Declare the stream over: its header, or BadFrame if it was truncated."""
        if self.header is None or not self._ended:
            where = "in its header" if self.header is None else f"after {self.received_bytes} of {self._memory.nbytes} bytes"
            raise BadFrame(f"the stream ends {where}: truncated", field="end")
        return self.header

    def _read_header(self, view: memoryview) -> memoryview:
        assert self._unpacker is not None
        taken = view[: MAX_HEADER_BYTES - self._fed]
        try:
            self._unpacker.feed(taken)
            fields = self._unpacker.unpack()
        except msgpack.OutOfData:
            self._fed += taken.nbytes
            if self._fed >= MAX_HEADER_BYTES:
                raise BadFrame(f"the header is longer than {MAX_HEADER_BYTES} bytes", field="header") from None
            return view[view.nbytes :]
        except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as error:
            raise BadFrame(f"the header is not valid msgpack: {error}", field="header") from None
        rest = view[self._unpacker.tell() - self._fed :]
        self._unpacker = None
        self.header = Header.unpack(fields)
        self._memory = self._allocate(self.header).cast("B")
        assert self._memory.nbytes == self.header.payload_bytes
        return rest

    def _read_prelude(self, view: memoryview) -> memoryview:
        first = self._pending[0] if self._pending else view[0]
        if first not in (_ARRAY_1, _ARRAY_3):
            raise BadFrame(f"byte 0x{first:02x} opens neither a chunk nor the end frame", field=f"chunks[{self._chunks}]")
        missing = (_CHUNK if first == _ARRAY_3 else _END).size - len(self._pending)
        self._pending += view[:missing]
        if view.nbytes >= missing:
            prelude, self._pending = bytes(self._pending), bytearray()
            (self._open_chunk if first == _ARRAY_3 else self._end)(prelude)
        return view[missing:]

    def _open_chunk(self, prelude: bytes) -> None:
        field = f"chunks[{self._chunks}]"
        _, uint64, offset, uint32, crc, bin32, length = _CHUNK.unpack(prelude)
        if (uint64, uint32, bin32) != (_UINT64, _UINT32, _BIN32):
            raise BadFrame("a chunk is [uint64 offset, uint32 crc32, bin32 data] in exactly these widths", field=field)
        if offset != self.received_bytes:
            raise BadFrame(f"the chunk starts at {offset}, but {self.received_bytes} is next: chunks come in order", field=field)
        if not 1 <= length <= min(MAX_CHUNK_BYTES, self._memory.nbytes - offset):
            left = self._memory.nbytes - offset
            raise BadFrame(f"a chunk of {length} bytes, where 1 to {min(MAX_CHUNK_BYTES, left)} fit", field=field)
        self._chunk_left, self._expected_crc, self._chunk_crc = length, crc, 0

    def _read_data(self, view: memoryview) -> memoryview:
        data = view[: self._chunk_left]
        place = self._memory[self.received_bytes : self.received_bytes + data.nbytes]
        place[:] = data
        self._chunk_crc = zlib.crc32(place, self._chunk_crc)
        self.received_bytes += data.nbytes
        self._chunk_left -= data.nbytes
        if not self._chunk_left:
            if self._chunk_crc != self._expected_crc:
                raise BadFrame("the checksum does not match the data: resend the stream", field=f"chunks[{self._chunks}].crc32")
            self._chunks += 1
        return view[data.nbytes :]

    def _end(self, frame: bytes) -> None:
        _, uint32, chunks = _END.unpack(frame)
        if uint32 != _UINT32 or chunks != self._chunks:
            raise BadFrame(f"the end frame must say [{self._chunks}] chunks", field="end")
        if self.received_bytes != self._memory.nbytes:
            raise BadFrame(f"the stream ends after {self.received_bytes} of {self._memory.nbytes} bytes: truncated", field="end")
        self._ended = True
