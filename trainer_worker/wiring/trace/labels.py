"""Labels: which neuron an element of a tensor belongs to, before it is known which labels mean the same neuron; and uses: from
which labels to which each weight was seen at work.

An `identity` is an int64 tensor of labels with as many dimensions as the tensor it describes; a dimension of size 1 says that
the neuron does not depend on it. A tensor may have several: after token mixing, one over channels and one over tokens.
"""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from protos.wiring import EdgeType

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
    riders: tuple["Held", ...] = ()  # parameters multiplied into it or added to it, expanded to its shape (weight norm's gains)

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
        source.expand(held.shape), target.expand(held.shape)  # raises if they are not, and the operator is not followed
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
