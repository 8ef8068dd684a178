"""Receive one snapshot into its row of the history, checked as it arrives."""

import math
from bisect import bisect_right
from functools import partial
from typing import Final, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from protos.errors import BadFrame, BadValue
from protos.frames import FrameReader, Header
from protos.messages import JobSpec, NowcastRequest, Progress

Model = TypeVar("Model", bound=BaseModel)

PIECE: Final = 32_768  # values looked at in one go: they stay in cache, and torch handles so few on the calling thread


class Arrival:
    """Reads the frames of one snapshot of a job into the row `values` (n,).

    Checksums and finiteness are checked on the event loop piece by piece, while the piece is in cache: about 0.2 ms for the 256 kB
    that a socket delivers at once. A thread would cost more than it saves.
    """

    def __init__(self, spec: JobSpec, *, step: int, values: torch.Tensor) -> None:
        self._spec = spec
        self._values = values
        self._checked = 0  # values known to be finite
        # not a method of this object: reader and arrival would hold each other, and a row of the history, until some collection
        self._reader = FrameReader(partial(_allocate, spec, step, values))

    def feed(self, data: bytes) -> None:
        """Take the next bytes of the body. Raise BadFrame, UnsupportedMedia or BadValue, naming what is wrong."""
        self._reader.feed(data)
        received = self._reader.received_bytes // self._values.element_size()
        if received - self._checked >= PIECE:
            self._check_finite(received)

    def close(self) -> tuple[Progress | None, NowcastRequest | None]:
        """The body is over; what came with the snapshot. Raises BadFrame if it is too early."""
        header = self._reader.close()
        self._check_finite(self._values.numel())
        return _with_it(header)

    def _check_finite(self, received: int) -> None:
        wrong = first_not_finite(self._values[self._checked : received])
        if wrong is not None:
            wiring, position = self._spec.wiring, self._checked + wrong
            parameter = wiring.parameters[bisect_right(wiring.offsets, position) - 1]
            value = self._values[position].item()
            raise BadValue(f"value {position} of the snapshot, in {parameter.name!r}, is {value}", field=parameter.name)
        self._checked = received


def _allocate(spec: JobSpec, step: int, values: torch.Tensor, header: Header) -> memoryview:
    expected = {"kind": "snapshot", "dtype": spec.dtype, "shape": (spec.wiring.size,), "step": step}
    for name, wanted in expected.items():
        if (given := getattr(header, name)) != wanted:
            raise BadFrame(f"the header's {name} is {given!r}; this snapshot of this job needs {wanted!r}", field=f"header.{name}")
    _with_it(header)  # so that a snapshot is refused before its data come
    return values.view(torch.uint8).numpy().data


def _with_it(header: Header) -> tuple[Progress | None, NowcastRequest | None]:
    progress, request = _read(Progress, header.progress, "progress"), _read(NowcastRequest, header.request, "request")
    if request is not None and request.step != header.step:
        raise BadFrame("the context of the request must end with this snapshot", field="header.request.context")
    return progress, request


def _read(model: type[Model], values: object, name: str) -> Model | None:
    try:
        return None if values is None else model.model_validate(values)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, (f"header.{name}", *first["loc"])))
        raise BadFrame(f"the {name} in the header is wrong: {first['msg']}", field=field) from None


def first_not_finite(values: torch.Tensor) -> int | None:
    """Position of the first NaN or infinity in `values` (n,), of any float dtype; None if there is none.

    A sum is finite only if every term is; it reads each value once and makes nothing. (Finite values whose sum overflows are
    looked at again one by one.)
    """
    size = PIECE if values.device.type == "cpu" else max(1, values.numel())  # a device answers once
    for start in range(0, values.numel(), size):
        piece = values[start : start + size]
        if not math.isfinite(piece.sum(dtype=torch.float32).item()):
            wrong = piece.isfinite().logical_not_().nonzero()
            if wrong.numel():
                return start + int(wrong[0])
    return None
