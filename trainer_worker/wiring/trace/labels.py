"""Labels: which neuron an element of a tensor belongs to, before it is known which labels mean the same neuron.

An `identity` is an int64 tensor of labels with as many dimensions as the tensor it describes; a dimension of size 1 says that
the neuron does not depend on it. A tensor may have several: after token mixing, one over channels and one over tokens.
"""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

UNKNOWN = -1


@dataclass(eq=False)
class Pairing:
    """Two activations contracted with each other: attention scores, if a softmax and values follow."""

    query: Tensor  # (batch, width) labels
    key: Tensor
    value: Tensor | None = None  # (batch, width of the values)
    result: Tensor | None = None  # the values after attention, of the same shape
    normalised: bool = False  # whether a softmax followed


@dataclass(frozen=True)
class Flow:
    """An activation."""

    identities: tuple[Tensor, ...] = ()  # see above
    plain: bool = False  # straight from a layer: only reshaped, scaled and shifted since
    pairing: Pairing | None = None  # the attention scores it holds
    learnt: bool = False  # it is weights used as an activation (class tokens, prompts)

    def along(self, dim: int, size: int) -> Tensor | None:
        """The identity that depends on the dimension; one neuron (size 1) is any identity of one label."""
        for labels in self.identities:
            if labels.shape[dim] > 1 or (size == 1 and labels.numel() == 1):
                return labels
        return None

    def without(self, dim: int) -> tuple[Tensor, ...]:
        """The identities that do not depend on the dimension."""
        return tuple(labels for labels in self.identities if dim not in varying(labels))


@dataclass(frozen=True)
class Held:
    """Weights of one parameter, seen through a view of it."""

    parameter: int  # its index
    view: Tensor  # on the meta device; offset, sizes and strides say where in the flattened parameter each element lies
    # other parameters multiplied into it or added to it, expanded to its shape (the gains of weight normalisation)
    riders: tuple["Held", ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.view.shape)

    @property
    def moving(self) -> set[int]:
        """The dimensions along which the elements are different weights."""
        return {dim for dim in range(self.view.dim()) if self.view.size(dim) > 1 and self.view.stride(dim) > 0}

    def seen(self, view: Tensor, riders: tuple["Held", ...] = ()) -> "Held":
        return replace(self, view=view, riders=riders)


Shadow = Flow | Held | None  # what is known about a tensor: neurons flowing through it, or weights held in it


class Labels:
    """Hands out labels and remembers which of them are tied, that is, name the same neuron."""

    def __init__(self) -> None:
        self.count = 0
        self.ties: list[tuple[Tensor, Tensor]] = []
        self._starts: list[int] = []
        self.read = torch.zeros(0, dtype=torch.bool)  # by label: do weights start from it, in this forward pass
        self._inputs: list[tuple[int, int]] = []

    def fresh(self, *shape: int) -> Tensor:
        """New labels, one for each element of `shape`; together they are one origin."""
        new = torch.Size(shape).numel()
        self._starts.append(self.count)
        self.count += new
        if self.count > len(self.read):
            self.read = torch.cat([self.read, torch.zeros(self.count, dtype=torch.bool)])
        return torch.arange(self.count - new, self.count).view(shape)

    def fresh_input(self, *shape: int) -> Tensor:
        """New labels for the elements of an input, of which only some dimensions will turn out to tell neurons apart."""
        labels = self.fresh(*shape)
        self._inputs.append((self._starts[-1], self.count))
        return labels

    def of_input(self, labels: Tensor) -> bool:
        first = int(labels.flatten()[0])
        return any(start <= first < end for start, end in self._inputs)

    def origins(self, *labels: Tensor) -> int:
        """How many layers (or inputs) the labels come from."""
        every = torch.cat([each.flatten() for each in labels])
        return len(set(torch.bucketize(every, torch.tensor(self._starts), right=True).tolist()))

    def settle(self, labels: Tensor) -> Tensor:
        """The labels with fresh ones where they are unknown."""
        missing = labels == UNKNOWN
        return labels.masked_scatter(missing, self.fresh(int(missing.sum()))) if missing.any() else labels

    def tie(self, left: Tensor, right: Tensor) -> None:
        """Left and right, broadcast against each other, name the same neurons."""
        left, right = torch.broadcast_tensors(left, right)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        differ = (left != right) & (left != UNKNOWN) & (right != UNKNOWN)
        if differ.any():
            self.ties.append((left[differ], right[differ]))

    def collapse(self, labels: Tensor, keep: set[int]) -> Tensor:
        """Tie labels along every dimension that is not kept; the rest has size 1 there."""
        first = labels
        for dim in range(labels.dim()):
            if dim not in keep:
                first = first.narrow(dim, 0, 1)
        if first.shape != labels.shape:
            self.tie(labels, first)
        return first

    def consume(self, labels: Tensor) -> None:
        """Weights start from these neurons: from now on, adding to them is a residual connection."""
        self.read[labels[labels != UNKNOWN]] = True

    def consumed(self, labels: Tensor) -> bool:
        return bool(self.read[labels[labels != UNKNOWN]].any())

    def resolve(self) -> Tensor:
        """The representative of every label: equal for tied ones. (labels,) int64."""
        parent = torch.arange(self.count)
        if not self.ties:
            return parent
        left, right = (torch.cat([pair[side] for pair in self.ties]) for side in (0, 1))
        while True:
            ends = torch.stack([parent[left], parent[right]])
            low, high = ends.amin(0), ends.amax(0)
            if torch.equal(low, high):
                return parent
            parent.scatter_reduce_(0, high, low, "amin")
            while not torch.equal(parent, parent[parent]):
                parent = parent[parent]


def distinct(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Where each distinct row comes up first, in that order, and which of them each row is: (distinct,), (rows,) int64."""
    number: dict[tuple[int, ...], int] = {}
    which = [number.setdefault(tuple(row), len(number)) for row in rows.tolist()]
    return torch.tensor([which.index(index) for index in range(len(number))]), torch.tensor(which)


def varying(labels: Tensor) -> set[int]:
    """The dimensions the neuron depends on."""
    return {dim for dim, size in enumerate(labels.shape) if size > 1}


def squash(labels: Tensor) -> Tensor:
    """Size 1 for every dimension along which the labels do not change, unknown ones aside."""
    for dim, size in enumerate(labels.shape):
        if size <= 1:
            continue
        first = labels.narrow(dim, 0, 1)
        if labels.stride(dim) == 0:
            labels = first
            continue
        if (labels == UNKNOWN).any():
            first = labels.amax(dim, keepdim=True)
        if ((labels == first) | (labels == UNKNOWN)).all():
            labels = first
    return labels
