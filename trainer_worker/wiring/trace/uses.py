"""Where each weight was seen at work: from which labels to which."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protos.wiring import EdgeType
from trainer_worker.wiring.trace.labels import UNKNOWN, Held, squash


@dataclass
class Use:
    """Weights of one parameter that work together."""

    offset: int  # where in the flattened parameter they lie
    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    source: Tensor  # labels, broadcastable to `sizes`
    target: Tensor
    kind: EdgeType
    lookup: bool = False  # rows are looked up by index, as in an embedding


class Uses:
    """All uses of all parameters; a weight is in at most one, later ones tie their labels to the first."""

    def __init__(self, sizes: list[int]) -> None:
        self.of: list[list[Use]] = [[] for _ in sizes]
        self._sizes = sizes
        self.count = 0
        self._masks: dict[int, Tensor] = {}

    def find(self, held: Held) -> Use | None:
        """The use of weights that were all seen before, its labels broadcastable to the view."""
        dims, place = _geometry(held)
        for use in self.of[held.parameter]:
            if place == (use.offset, use.sizes, use.strides):
                return replace(use, source=_unfold(use.source, held, dims), target=_unfold(use.target, held, dims))
        return self._gather(held) if self.of[held.parameter] and self._seen(held).all() else None

    def add(self, held: Held, source: Tensor, target: Tensor, kind: EdgeType, *, lookup: bool = False) -> None:
        """Note a first use, with labels broadcastable to the view. Weights seen before in another shape are left alone."""
        uses = self.of[held.parameter]
        if held.view.numel() == 0 or (uses and self._seen(held).any()):
            return
        dims, (offset, sizes, strides) = _geometry(held)
        uses.append(Use(offset, sizes, strides, _fold(source, dims), _fold(target, dims), kind, lookup))
        self.count += 1
        if held.parameter in self._masks:
            self._masks[held.parameter].as_strided(sizes, strides, offset).fill_(True)

    def complete(self, parameter: int) -> bool:
        """Every weight of the parameter was seen."""
        return sum(math.prod(use.sizes) for use in self.of[parameter]) == self._sizes[parameter]

    def seen(self, parameter: int) -> Tensor:
        """Which weights of the flattened parameter were seen, bool."""
        if parameter not in self._masks:
            mask = self._masks[parameter] = torch.zeros(self._sizes[parameter], dtype=torch.bool)
            for use in self.of[parameter]:
                mask.as_strided(use.sizes, use.strides, use.offset).fill_(True)
        return self._masks[parameter]

    def _seen(self, held: Held) -> Tensor:
        """Which of the view's weights were seen; told without a mask where all of the parameter's were."""
        return torch.ones(1, dtype=torch.bool) if self.complete(held.parameter) else _through(self.seen(held.parameter), held)

    def _gather(self, held: Held) -> Use:
        """Of a view of another shape than the uses it overlaps: labels element by element."""
        uses = self.of[held.parameter]
        source, target = (torch.full((self._sizes[held.parameter],), UNKNOWN) for _ in range(2))
        for use in uses:
            for flat, labels in ((source, use.source), (target, use.target)):
                flat.as_strided(use.sizes, use.strides, use.offset).copy_(labels)
        source, target = (squash(_through(flat, held)) for flat in (source, target))
        return replace(uses[0], source=source, target=target, lookup=any(use.lookup for use in uses))


def _through(flat: Tensor, held: Held) -> Tensor:
    """The view's elements of a flattened tensor."""
    return flat.as_strided(held.view.size(), held.view.stride(), held.view.storage_offset())


def _geometry(held: Held) -> tuple[list[int], tuple[int, tuple[int, ...], tuple[int, ...]]]:
    """The dimensions that move through the parameter, by falling stride; offset, sizes and strides of these."""
    view, dims = held.view, sorted(held.moving, key=lambda dim: -held.view.stride()[dim])
    return dims, (int(view.storage_offset()), tuple(map(view.size, dims)), tuple(map(view.stride, dims)))


def _fold(labels: Tensor, dims: list[int]) -> Tensor:
    """Labels over a view's dimensions -> over the use's."""
    rest = [dim for dim in range(labels.dim()) if dim not in dims]
    for dim in rest:
        labels = labels.narrow(dim, 0, 1)
    return labels.permute(*dims, *rest).flatten(len(dims)).squeeze(-1) if rest else labels.permute(*dims)


def _unfold(labels: Tensor, held: Held, dims: list[int]) -> Tensor:
    """Labels over a use's dimensions -> over the view's."""
    order = [*dims, *(dim for dim in range(held.view.dim()) if dim not in dims)]
    return labels[(..., *(None,) * (len(order) - len(dims)))].permute(*sorted(range(len(order)), key=order.__getitem__))
