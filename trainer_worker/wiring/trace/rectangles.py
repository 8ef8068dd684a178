"""From the neurons of every weight to rectangles and diagonals of edges."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain, islice, product

import torch
from torch import Tensor

from trainer_worker.wiring.canvas import Neurons

MAX_PIECES = 2**14
"""Blocks one tensor may take; more means that its neurons are shuffled beyond what blocks can say."""


@dataclass(frozen=True)
class Stretch:
    """Consecutive neurons whose weights lie at regular distances, `repeats` weights each."""

    start: int
    count: int
    offset: int
    stride: int
    repeats: int = 1
    repeat_stride: int = 0
    kind: int = 0

    @property
    def neurons(self) -> Neurons:
        return Neurons(self.start, self.count)


@dataclass(frozen=True)
class Piece:
    """One block to draw."""

    sources: Neurons
    targets: Neurons
    strides: tuple[int, int]
    offset: int
    slots: int
    slot_stride: int
    kind: int
    diagonal: bool = False


@dataclass(frozen=True)
class Weights:
    """Weights at `offset + sum(index * stride)`, with the neurons they join, broadcastable to `sizes`; a kind for each target."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    source: Tensor
    target: Tensor
    kind: Tensor

    def pieces(self) -> Iterator[Piece]:
        """The blocks that hold these weights, each once."""
        both = [axis for axis in self._axes if self.source.shape[axis] > 1 and self.target.shape[axis] > 1]
        if not both:
            yield from self.rectangles()
            return
        apart = [axis for axis in self._axes if axis not in both and self.source.shape[axis] + self.target.shape[axis] > 2]
        diagonals = chain.from_iterable(part.diagonals(both) for part in self._slices(apart))
        rectangles = chain.from_iterable(part.rectangles() for part in self._slices(both))
        if self._count(apart) <= self._count(both):  # every slice gives a block at least: the way with fewer goes first
            first = list(islice(diagonals, MAX_PIECES + 1))
            second = list(islice(rectangles, len(first))) if self._count(both) < len(first) else first
            yield from min(first, second, key=len)
        else:
            first = list(islice(rectangles, MAX_PIECES + 1))
            second = list(islice(diagonals, len(first) + 1)) if self._count(apart) <= len(first) else []
            yield from second if 0 < len(second) <= len(first) else first

    def _count(self, axes: list[int]) -> int:
        """How many slices there are along some axes."""
        return math.prod(self.sizes[axis] for axis in axes)

    @property
    def _axes(self) -> range:
        return range(len(self.sizes))

    def _slices(self, axes: list[int]) -> Iterator["Weights"]:
        """One index of each of the axes at a time."""
        for index in product(*(range(self.sizes[axis]) for axis in axes)):
            part = self
            for axis, at in zip(axes, index, strict=True):
                part = part._at(axis, at)
            yield part

    def _at(self, axis: int, index: int) -> "Weights":
        sizes = (*self.sizes[:axis], 1, *self.sizes[axis + 1 :])
        ends = (_narrow(labels, axis, index) for labels in (self.source, self.target, self.kind))
        return Weights(sizes, self.strides, self.offset + index * self.strides[axis], *ends)

    def _along(self, labels: Tensor, axes: list[int]) -> Tensor:
        shape = [self.sizes[axis] if axis in axes else 1 for axis in self._axes]
        return labels.expand(shape).flatten()

    def _positions(self, axes: list[int]) -> Tensor:
        """Offsets of the weights along some axes, the last fastest."""
        at = torch.zeros(1, dtype=torch.int64)
        for axis in axes:
            at = (at[:, None] + torch.arange(self.sizes[axis]) * self.strides[axis]).flatten()
        return at

    def _slots(self, axes: list[int]) -> list[tuple[int, int, int]]:
        """(offset, count, stride) of the weights that share an edge."""
        at = self._positions(axes)
        steps = at.diff()
        if len(at) == 1 or (steps == steps[0]).all():
            return [(0, len(at), int(steps[0]) if len(at) > 1 else 0)]
        return [(int(offset), 1, 0) for offset in at]

    def rectangles(self) -> Iterator[Piece]:
        """The blocks, where no axis moves both neurons."""
        source = [axis for axis in self._axes if self.source.shape[axis] > 1]
        target = [axis for axis in self._axes if self.target.shape[axis] > 1]
        free = [axis for axis in self._axes if axis not in source and axis not in target]
        starts = _all_stretches(self._along(self.source, source), self._positions(source))
        ends = _all_stretches(self._along(self.target, target), self._positions(target), self._along(self.kind, target))
        for first, second, slots in product(starts, ends, self._slots(free)):
            yield from _pieces(self.offset, first, second, slots)

    def diagonals(self, axes: list[int]) -> Iterator[Piece]:
        """The blocks, where the axes move both neurons together."""
        free = [axis for axis in self._axes if axis not in axes]
        ends = torch.stack([self._along(self.source, axes), self._along(self.target, axes)])
        at, kind = self._positions(axes), self._along(self.kind, axes)
        for first, count, stride in _diagonal_runs(ends, at, kind):
            source, target = (Neurons(int(end[first]), count) for end in ends)
            for offset, slots, slot_stride in self._slots(free):
                place = self.offset + int(at[first]) + offset
                yield Piece(source, target, (stride, 0), place, slots, slot_stride, int(kind[first]), diagonal=True)


def _narrow(labels: Tensor, axis: int, index: int) -> Tensor:
    return labels.narrow(axis, index, 1) if labels.shape[axis] > 1 else labels


def _diagonal_runs(ends: Tensor, at: Tensor, kind: Tensor) -> Iterator[tuple[int, int, int]]:
    """(first, count, stride) of stretches where both neurons step by one and the weights by a constant."""
    follows = (ends.diff() == 1).all(0) & (kind.diff() == 0)
    steps = at.diff()
    first = 0
    for index in range(len(at)):
        last = index == len(at) - 1
        if last or not follows[index] or steps[index] < 0 or (index > first and steps[index] != steps[first]):
            yield first, index - first + 1, int(steps[first]) if index > first else 0
            first = index + 1


def _all_stretches(neurons: Tensor, at: Tensor, kind: Tensor | None = None) -> list[Stretch]:
    """Group the weights along one side by neuron, then neurons into runs."""
    kind = torch.zeros_like(neurons) if kind is None else kind
    order = torch.argsort(kind * (int(neurons.max()) + 1) + neurons, stable=True)
    neurons, at, kind = neurons[order], at[order], kind[order]
    _, inverse, counts = torch.unique_consecutive(torch.stack([kind, neurons]), dim=1, return_inverse=True, return_counts=True)
    rank = torch.arange(len(at)) - (counts.cumsum(0) - counts)[inverse]
    repeats = int(counts[0])
    if (counts == repeats).all():
        table = at.view(-1, repeats)
        steps = table.diff(dim=1)
        if repeats == 1 or _inner(table, steps):
            step = int(steps[0, 0]) if repeats > 1 else 0
            return list(_stretches(neurons[::repeats], table[:, 0], kind[::repeats], repeats, step))
    chosen = (rank == index for index in range(int(counts.max())))
    return [run for mask in chosen for run in _stretches(neurons[mask], at[mask], kind[mask], 1, 0)]


def _inner(table: Tensor, steps: Tensor) -> bool:
    """The weights of one neuron lie side by side, as positions of a flattened image do; a recurrent layer's gates do not."""
    regular = bool((steps == steps[0, 0]).all()) and int(steps[0, 0]) > 0
    return regular and (len(table) == 1 or int(steps[0, 0]) * table.shape[1] <= int(table[1, 0] - table[0, 0]))


def _stretches(neurons: Tensor, at: Tensor, kind: Tensor, repeats: int, repeat_stride: int) -> Iterator[Stretch]:
    follows = (neurons.diff() == 1) & (kind.diff() == 0) & (at.diff() >= 0)
    steps = at.diff()
    if len(at) > 1 and follows.all() and (steps == steps[0]).all():
        yield Stretch(int(neurons[0]), len(at), int(at[0]), int(steps[0]), repeats, repeat_stride, int(kind[0]))
        return
    first = 0
    going, distance = follows.tolist(), steps.tolist()
    for index in range(len(at)):
        if index == len(at) - 1 or not going[index] or (index > first and distance[index] != distance[first]):
            stride = distance[first] if index > first else 0
            yield Stretch(int(neurons[first]), index - first + 1, int(at[first]), stride, repeats, repeat_stride, int(kind[first]))
            first = index + 1


def _pieces(offset: int, first: Stretch, second: Stretch, slots: tuple[int, int, int]) -> Iterator[Piece]:
    """Weights of one edge may repeat on three accounts; the most numerous share the edge, the others become parallel edges."""
    repeats = [(slots[1], slots[2]), (first.repeats, first.repeat_stride), (second.repeats, second.repeat_stride)]
    repeats.sort(key=lambda pair: -pair[0])
    (count, stride), *others = repeats
    start = offset + first.offset + second.offset + slots[0]
    for indices in product(*(range(number) for number, _ in others)):
        place = start + sum(index * step for index, (_, step) in zip(indices, others, strict=True))
        yield Piece(first.neurons, second.neurons, (first.stride, second.stride), place, count, stride, second.kind)
