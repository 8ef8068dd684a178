"""The trained parameters of a model as one flat vector; of one that is split over ranks (FSDP2), one whole parameter at a time."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from trainer_worker.errors import BadArgument

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class Piece:
    """Where one parameter lies in the flat vector: from `start` up to `stop`."""

    name: str
    parameter: nn.Parameter
    start: int
    stop: int


class FlatParameters:
    """The parameters that the optimizers train, `named_parameters()` one after the other, tied ones once. Those that cannot be
    forecast (complex, or of a tensor subclass) are left out and logged.

    Of a model that is split over ranks (FSDP2) rank 0 holds the vector. Every rank takes part in `copy_to`, parameter by parameter,
    and none holds more than one whole parameter besides.

    Raises:
        BadArgument: of the model's parameters none is trained, or one has no values yet, or some only are split.
    """

    def __init__(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
        self._trained = _shapes(model, optimizers)
        each = [(name, parameter) for name, parameter in trained(model, optimizers) if _forecastable(name, parameter)]
        *starts, self.size = accumulate((parameter.numel() for _, parameter in each), initial=0)
        self.pieces = tuple(Piece(*named, start, start + named[1].numel()) for named, start in zip(each, starts, strict=True))
        if not self.size:
            names = ", ".join(type(optimizer).__name__ for optimizer in optimizers)
            detail = f"{names} holds no trainable parameter of the model that can be forecast; pass the optimizer that trains it"
            raise BadArgument("optimizer", detail)
        apart = [name for name, parameter in each if not isinstance(parameter, DTensor)]
        self.sharded = len(apart) < len(each)
        if (self.sharded and apart) or any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules()):
            named = ", ".join(apart[:3])
            raise BadArgument("model", f"fully_shard (FSDP2) has to split all that is trained, or nothing; not split are {named}")
        devices = {piece.parameter.device for piece in self.pieces}
        self.device = next(iter(devices)) if len(devices) == 1 else torch.device("cpu")

    @property
    def parameters(self) -> list[nn.Parameter]:
        """In the vector's order."""
        return [piece.parameter for piece in self.pieces]

    def covers(self, model: nn.Module, optimizers: Sequence[Optimizer]) -> bool:
        """Whether the same parameters are trained as when this was made, of the same shapes."""
        return _shapes(model, optimizers) == self._trained

    @torch.no_grad()
    def copy_to(self, vector: Tensor | None) -> None:
        """Write the parameters into `vector` (n,), rounded to its dtype; None on a rank that only takes part."""
        for piece in self.pieces:
            values = whole(piece.parameter)
            if vector is not None:
                vector[piece.start : piece.stop].view(piece.parameter.shape).copy_(values)


def trained(model: nn.Module, optimizers: Sequence[Optimizer]) -> Iterator[tuple[str, nn.Parameter]]:
    """The parameters that the optimizers move, with their names."""
    held = {id(parameter) for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]}
    return ((name, each) for name, each in model.named_parameters() if each.requires_grad and id(each) in held)


def _shapes(model: nn.Module, optimizers: Sequence[Optimizer]) -> list[tuple[int, torch.Size | None]]:
    return [(id(each), None if is_lazy(each) else each.shape) for _, each in trained(model, optimizers)]


def _forecastable(name: str, parameter: nn.Parameter) -> bool:
    if is_lazy(parameter):
        raise BadArgument("model", f"parameter {name!r} is lazy and has no shape yet: run one batch through the model first")
    if parameter.is_meta:
        raise BadArgument("model", f"parameter {name!r} is on the meta device and has no values: materialise the model first")
    plain = type(parameter.data) is Tensor or isinstance(parameter, DTensor)
    if parameter.dtype.is_floating_point and plain:
        return True
    kind = str(parameter.dtype) if plain else type(parameter.data).__name__
    log.warning("parameter %r is trained but cannot be forecast (%s): only the optimizer changes it", name, kind)
    return False


def local(tensor: Tensor) -> Tensor:
    """This rank's part, sharing its memory; a plain tensor is its own."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """All of it. A sharded one is gathered: every rank must call."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def part_of(values: Tensor | None, like: Tensor) -> Tensor:
    """This rank's part of flat `values`, which rank 0 scatters if `like` is sharded (None elsewhere): every rank must call."""
    values = torch.zeros(like.numel(), device=like.device) if values is None else values.to(like.device)
    if not isinstance(like, DTensor):
        return values.view(like.shape)
    return local(distribute_tensor(values.view(like.shape).float(), like.device_mesh, like.placements))


def gathered(part: Tensor, like: Tensor) -> Tensor | None:
    """What `part_of` made parts of, on rank 0's host; None elsewhere: every rank must call."""
    if not isinstance(like, DTensor):
        return part.cpu()
    mesh = like.device_mesh
    values = DTensor.from_local(part, mesh, like.placements, shape=like.shape, stride=like.stride()).full_tensor()
    return None if any(mesh.get_coordinate() or ()) else values.cpu()
