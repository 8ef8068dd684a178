"""Parameters as one flat vector, and back."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from trainer_worker.errors import BadArgument

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
    moves: bool  # a jump may change it
    exact: bool  # snapshots hold it without rounding


class FlatParameters:
    """The flat parameter vector of a model: `named_parameters()` one after the other, tied ones once.

    Parameters that the optimizer does not train, frozen ones and those of another optimizer, are part of the vector (the
    forecaster sees the whole network), but no jump ever changes them.

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
            moves = parameter.requires_grad and id(parameter) in trained
            self._slices.append(_Slice(name, parameter, start, stop, moves, parameter.dtype in EXACT[dtype]))
            start = stop
        self.size = start
        if not self._slices:
            raise BadArgument("model", f"{type(model).__name__} has no parameters to forecast")
        if not any(piece.moves for piece in self._slices):
            detail = f"{type(optimizer).__name__} holds no trainable parameter of the model; pass the optimizer that trains it"
            raise BadArgument("optimizer", detail)
        devices = {piece.parameter.device for piece in self._slices}
        self.device = next(iter(devices)) if len(devices) == 1 else torch.device("cpu")

    @property
    def shapes(self) -> list[tuple[str, tuple[int, ...]]]:
        """Names and shapes in the vector's order."""
        return [(piece.name, tuple(piece.parameter.shape)) for piece in self._slices]

    @property
    def moving(self) -> Iterator[nn.Parameter]:
        """The parameters a jump may change."""
        return (piece.parameter for piece in self._slices if piece.moves)

    @torch.no_grad()
    def copy_to(self, vector: Tensor) -> None:
        """Write the parameters into `vector` (n,), rounded to its dtype."""
        for piece in self._slices:
            vector[piece.start : piece.stop].view(piece.parameter.shape).copy_(piece.parameter)

    def displace(self, forecast: Tensor, *, last: Tensor, late: bool = False) -> None:
        """Make a forecast into what `load` takes.

        A parameter that snapshots hold exactly becomes the forecast. One that is rounded for sending (float64, or sent as 16
        bits) moves by the forecast's displacement instead, so that it keeps the digits its snapshot lost.

        Args:
            forecast: (n,) float32; written to.
            last: the snapshot it starts from, (n,).
            late: training has gone on since that snapshot, so all parameters move by the displacement.
        """
        for piece in self._slices:
            if piece.moves and (late or not piece.exact):
                forecast[piece.start : piece.stop] -= last[piece.start : piece.stop]

    @torch.no_grad()
    def load(self, target: Tensor, *, late: bool = False) -> None:
        """Move the parameters, in place, to `target` (n,) float32, as `displace` left it."""
        for piece in self._slices:
            if not piece.moves:
                continue
            values = target[piece.start : piece.stop].view(piece.parameter.shape)
            if piece.exact and not late:
                piece.parameter.copy_(values)
            else:
                piece.parameter.add_(values.to(piece.parameter.device))


def _check(name: str, parameter: nn.Parameter) -> None:
    def wrong(why: str) -> BadArgument:
        return BadArgument("model", f"parameter {name!r} {why}")

    if is_lazy(parameter):
        raise wrong("is lazy and has no shape yet: run one batch through the model first")
    if parameter.is_meta:
        raise wrong("is on the meta device and has no values: materialise the model (to_empty and initialise it) first")
    if not parameter.dtype.is_floating_point:
        raise wrong(f"has dtype {parameter.dtype}; only real floating-point parameters can be forecast")
    if type(parameter.data) is not Tensor:
        raise wrong(f"is a {type(parameter.data).__name__}, split over ranks or wrapped; only plain tensors can be forecast")
