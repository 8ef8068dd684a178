"""Parameters as one flat vector, and back."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from protos.errors import BadForecast
from trainer_worker.errors import BadArgument
from trainer_worker.weights.sharded import is_sharded, local, part_of, whole

EXACT: Final = {
    torch.float32: frozenset({torch.float32, torch.float16, torch.bfloat16}),
    torch.float16: frozenset({torch.float16}),
    torch.bfloat16: frozenset({torch.bfloat16}),
}
"""Dtypes of parameters a snapshot of each dtype holds without rounding."""


@dataclass(frozen=True, slots=True, eq=False)
class _Slice:
    name: str
    parameter: nn.Parameter
    start: int
    stop: int
    trained: bool  # when the run began
    exact: bool  # snapshots hold it without rounding

    @property
    def moves(self) -> bool:
        """A jump at this moment may change it."""
        return self.trained and self.parameter.requires_grad


class FlatParameters:
    """The flat parameter vector of a model: `named_parameters()` one after the other, tied ones once.

    Parameters that the optimizer does not train, frozen ones and those of another optimizer, are part of the vector (the
    forecaster sees the whole network), but no jump ever changes them: neither those it did not train when the vector was made nor
    those that have been frozen since.

    Of a model that is split over ranks (FSDP2) rank 0 holds the vector; every rank takes part in `copy_to` and `load`, parameter
    by parameter, and none holds more than one whole parameter besides.

    Args:
        model: unwrapped.
        optimizer: decides which parameters a jump may change.
        dtype: of the snapshots.

    Raises:
        BadArgument: a parameter that cannot be forecast, or an optimizer of another model.
    """

    def __init__(self, model: nn.Module, optimizer: Optimizer, *, dtype: torch.dtype) -> None:
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        self._slices: list[_Slice] = []
        start = 0
        for name, parameter in model.named_parameters():
            _check(name, parameter)
            stop = start + parameter.numel()
            trains = parameter.requires_grad and id(parameter) in trained
            self._slices.append(_Slice(name, parameter, start, stop, trains, parameter.dtype in EXACT[dtype]))
            start = stop
        self.size = start
        if not self._slices:
            raise BadArgument("model", f"{type(model).__name__} has no parameters to forecast")
        if not any(piece.moves for piece in self._slices):
            detail = f"{type(optimizer).__name__} holds no trainable parameter of the model; pass the optimizer that trains it"
            raise BadArgument("optimizer", detail)
        self.sharded = any(is_sharded(piece.parameter) for piece in self._slices)
        devices = {piece.parameter.device for piece in self._slices}
        self.device = next(iter(devices)) if len(devices) == 1 else torch.device("cpu")

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes in the vector's order."""
        return [(piece.name, tuple(piece.parameter.shape)) for piece in self._slices]

    @property
    def trained(self) -> Iterator[nn.Parameter]:
        """The parameters a jump may change unless they are frozen by then."""
        return (piece.parameter for piece in self._slices if piece.trained)

    @property
    def moving(self) -> Iterator[nn.Parameter]:
        """The parameters a jump at this moment may change."""
        return (piece.parameter for piece in self._slices if piece.moves)

    @torch.no_grad()
    def copy_to(self, vector: Tensor | None, *, means: Mapping[Tensor, Tensor] = MappingProxyType({})) -> None:
        """Write the parameters into `vector` (n,), rounded to its dtype.

        Args:
            vector: None on a rank that only takes part.
            means: what to write in place of some.
        """
        for piece in self._slices:
            values = whole(means.get(piece.parameter, piece.parameter))
            if vector is not None:
                vector[piece.start : piece.stop].view(piece.parameter.shape).copy_(values)

    def distance(self, start: Tensor, end: Tensor) -> float:
        """Euclidean distance between two vectors (n,), over the parameters a jump may change."""
        parts = (end[piece.start : piece.stop] - start[piece.start : piece.stop] for piece in self._slices if piece.moves)
        return math.sqrt(sum(_norm(part) ** 2 for part in parts))

    @torch.no_grad()
    def hold_norms(self, forecast: Tensor, *, last: Tensor, growth: float) -> None:
        """Scale a forecast's weights, in place: of what it makes of each tensor's norm, only the power `growth` is left.

        Tensors of one dimension, biases and normalisation, stay as they are, and so does one whose norm is zero or becomes zero.

        Args:
            forecast: (n,) float32.
            last: (n,) the snapshot it starts from.
            growth: 0 for the norms of `last`, 1 for the forecast's own.
        """
        for piece in self._slices:
            if piece.trained and piece.parameter.dim() > 1:
                new = forecast[piece.start : piece.stop]
                before, after = _norm(last[piece.start : piece.stop]), _norm(new)
                if before and after:
                    new *= (before / after) ** (1 - growth)

    @torch.no_grad()
    def shorten(self, forecast: Tensor, *, last: Tensor, factor: float, growth: float) -> None:
        """Make a share of a forecast's displacement only, in place.

        A straight way between two directions cuts inside: a tensor that turns would come out smaller than either end. So where
        norms are held, halfway is halfway in norm too. In between, the power `growth` of what the straight way makes is left.

        Args:
            forecast: (n,) float32, of norms as `hold_norms` left them.
            last: (n,) the snapshot it starts from.
            factor: the share.
            growth: as for `hold_norms`; 1 for the straight way.
        """
        for piece in self._slices:
            if not piece.trained:
                continue
            old, new = last[piece.start : piece.stop].to(forecast.dtype), forecast[piece.start : piece.stop]
            held = growth != 1 and piece.parameter.dim() > 1
            norm = (1 - factor) * _norm(old) + factor * _norm(new) if held else 0.0
            torch.lerp(old, new, factor, out=new)
            if norm and (straight := _norm(new)):
                new *= (norm / straight) ** (1 - growth)

    def displace(self, forecast: Tensor, *, last: Tensor, late: bool = False) -> None:
        """Make a forecast into what `load` takes.

        A parameter that snapshots hold exactly becomes the forecast. One that is rounded for sending (float64, or sent as 16
        bits) moves by the forecast's displacement instead, so that it keeps the digits its snapshot lost.

        Args:
            forecast: (n,) float32; written to.
            last: the snapshot it starts from, (n,).
            late: the weights are not those of that snapshot (training has gone on, or it is an average), so all parameters move
                by the displacement.

        Raises:
            BadForecast: a weight would not be finite: float16 is not above 65,504, nor a norm brought back from next to nothing.
        """
        for piece in self._slices:
            part = forecast[piece.start : piece.stop]
            if not piece.trained or not part.numel():
                continue
            if not float(torch.linalg.vector_norm(part, math.inf)) <= torch.finfo(piece.parameter.dtype).max:
                raise BadForecast(f"the forecast of {piece.name!r} is not finite in {piece.parameter.dtype}")
            if late or not piece.exact:
                part -= last[piece.start : piece.stop]

    @torch.no_grad()
    def load(self, target: Tensor | None, *, late: bool = False) -> None:
        """Move the parameters, in place, to `target` (n,) float32, as `displace` left it; None on a rank that is given its part."""
        for piece in self._slices:
            if not piece.moves:
                continue
            values = None if target is None else target[piece.start : piece.stop].view(piece.parameter.shape)
            mine = part_of(values, piece.parameter)
            if piece.exact and not late:
                local(piece.parameter).copy_(mine)
            else:
                local(piece.parameter).add_(mine)


def _norm(part: Tensor) -> float:
    """Euclidean norm, summed in float64: in float32 that of 67 million weights is off by 3%."""
    return float(torch.linalg.vector_norm(part, dtype=torch.float64))


def _check(name: str, parameter: nn.Parameter) -> None:
    def wrong(why: str) -> BadArgument:
        return BadArgument("model", f"parameter {name!r} {why}")

    if is_lazy(parameter):
        raise wrong("is lazy and has no shape yet: run one batch through the model first")
    if parameter.is_meta:
        raise wrong("is on the meta device and has no values: materialise the model (to_empty and initialise it) first")
    if not parameter.dtype.is_floating_point:
        raise wrong(f"has dtype {parameter.dtype}; only real floating-point parameters can be forecast")
    if type(parameter.data) is not Tensor and not is_sharded(parameter):
        raise wrong(f"is a {type(parameter.data).__name__}; only plain tensors, and those of fully_shard, can be forecast")
