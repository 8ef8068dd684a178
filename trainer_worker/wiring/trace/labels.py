"""Labels: which neuron an element of a tensor belongs to, before it is known which labels mean the same neuron.

An `identity` is an int64 tensor of labels with as many dimensions as the tensor it describes; a dimension of size 1 says that
the neuron does not depend on it. A tensor may have several: after token mixing, one over channels and one over tokens.
"""

import torch
from torch import Tensor

UNKNOWN = -1


class Labels:
    """Hands out labels and remembers which of them are tied, that is, name the same neuron."""

    def __init__(self) -> None:
        self._count = 0
        self._starts: list[int] = []
        self._ties: list[tuple[Tensor, Tensor]] = []
        self._consumed = torch.zeros(0, dtype=torch.bool)
        self._inputs: list[tuple[int, int]] = []

    def fresh_input(self, *shape: int) -> Tensor:
        """New labels for the elements of an input, of which only some dimensions will turn out to tell neurons apart."""
        labels = self.fresh(*shape)
        self._inputs.append((self._starts[-1], self._count))
        return labels

    def of_input(self, labels: Tensor) -> bool:
        first = int(labels.flatten()[0])
        return any(start <= first < end for start, end in self._inputs)

    def fresh(self, *shape: int) -> Tensor:
        """New labels, one for each element of `shape`; together they are one origin."""
        new = torch.Size(shape).numel()
        self._starts.append(self._count)
        self._count += new
        if self._count > len(self._consumed):
            self._consumed = torch.cat([self._consumed, torch.zeros(self._count, dtype=torch.bool)])
        return torch.arange(self._count - new, self._count).view(shape)

    def settle(self, labels: Tensor) -> Tensor:
        """The labels with fresh ones where they are unknown."""
        missing = labels == UNKNOWN
        if not missing.any():
            return labels
        return labels.masked_scatter(missing, self.fresh(int(missing.sum())))

    def tie(self, left: Tensor, right: Tensor) -> None:
        """Left and right, broadcast against each other, name the same neurons."""
        left, right = broadcast(left, right)
        differ = (left != right) & (left != UNKNOWN) & (right != UNKNOWN)
        if differ.any():
            self._ties.append((left[differ], right[differ]))

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
        self._consumed[labels[labels != UNKNOWN]] = True

    def forget_consumed(self) -> None:
        """A new forward pass reads everything anew."""
        self._consumed.zero_()

    @property
    def count(self) -> int:
        """How many labels there are."""
        return self._count

    @property
    def ties(self) -> int:
        """How many ties there are; setting it forgets the later ones."""
        return len(self._ties)

    @ties.setter
    def ties(self, count: int) -> None:
        del self._ties[count:]

    def consumed(self, labels: Tensor) -> bool:
        known = labels[labels != UNKNOWN]
        return bool(self._consumed[known].any())

    def same_origin(self, left: Tensor, right: Tensor) -> bool:
        """Both are parts of what one layer put out."""
        return self.origins(torch.cat([left.flatten(), right.flatten()])) == 1

    def origins(self, labels: Tensor) -> int:
        """How many layers (or inputs) the labels come from."""
        return len(set(torch.bucketize(labels.flatten(), torch.tensor(self._starts), right=True).tolist()))

    def resolve(self) -> Tensor:
        """The representative of every label: equal for tied ones. (labels,) int64."""
        parent = torch.arange(self._count)
        if not self._ties:
            return parent
        left = torch.cat([pair[0] for pair in self._ties])
        right = torch.cat([pair[1] for pair in self._ties])
        while True:
            ends = torch.stack([parent[left], parent[right]])
            low, high = ends.amin(0), ends.amax(0)
            if torch.equal(low, high):
                return parent
            parent.scatter_reduce_(0, high, low, "amin")
            while not torch.equal(parent, parent[parent]):
                parent = parent[parent]


def broadcast(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Both expanded to their common shape."""
    shape = torch.broadcast_shapes(left.shape, right.shape)  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return left.expand(shape), right.expand(shape)


def overlap(left: Tensor, right: Tensor) -> bool:
    """Some label is in both."""
    apart = int(left.max()) < int(right.min()) or int(right.max()) < int(left.min())
    return not apart and not set(left.flatten().tolist()).isdisjoint(right.flatten().tolist())


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
