"""Blocks, found as rectangles and diagonals in the neurons of every weight."""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain, islice, product
from operator import itemgetter

import torch
from torch import Tensor

from protos.wiring import MAX_SLOTS, STRUCTURE, Block

MAX_PIECES = 2**14  # blocks one tensor may take; more means that its neurons are shuffled beyond what blocks can say


def edges(kind: int, sources: range, targets: range, *, diagonal: bool = False, parameter: int = STRUCTURE) -> Block:
    """A block between two ranges of neurons."""
    return Block(int(kind), sources.start, len(sources), targets.start, len(targets), diagonal=diagonal, parameter=parameter)


def ranges(numbers: Iterable[int]) -> Iterator[range]:
    """The stretches of ascending numbers that follow one upon the other."""
    start = stop = -1
    for number in numbers:
        if number != stop:
            if stop > start:
                yield range(start, stop)
            start = number
        stop = number + 1
    if stop > start:
        yield range(start, stop)


def split(block: Block) -> Iterator[Block]:
    """A block of any number of slots as parallel edges of nine at most."""
    for first in range(0, block.slots, MAX_SLOTS):
        count = min(MAX_SLOTS, block.slots - first)
        offset, stride = block.offset + first * block.slot_stride, block.slot_stride if count > 1 else 0
        yield replace(block, offset=offset, slots=count, slot_stride=stride)


@dataclass(frozen=True)
class Stretch:
    """Consecutive neurons whose weights lie at regular distances, `repeats` weights each."""

    start: int
    count: int
    offset: int
    stride: int
    repeats: int
    repeat_stride: int
    kind: int


@dataclass(frozen=True)
class Weights:
    """Weights at `offset + sum(index * stride)`, with the neurons they join, broadcastable to `sizes`; a kind for each target."""

    sizes: tuple[int, ...]
    strides: tuple[int, ...]
    offset: int
    source: Tensor
    target: Tensor
    kind: Tensor

    def blocks(self, parameter: int) -> Iterator[Block]:
        """The blocks that hold these weights, each once; their edge types are the weights' kinds, their slots any number."""
        axes = range(len(self.sizes))
        both = [axis for axis in axes if self.source.shape[axis] > 1 and self.target.shape[axis] > 1]
        if not both:
            yield from self.rectangles(parameter)
            return
        apart = [axis for axis in axes if axis not in both and self.source.shape[axis] + self.target.shape[axis] > 2]
        diagonals = chain.from_iterable(part.diagonals(parameter, both) for part in self._slices(apart))
        rectangles = chain.from_iterable(part.rectangles(parameter) for part in self._slices(both))
        few, many = (math.prod(self.sizes[at] for at in chosen) for chosen in (apart, both))
        # every slice gives a block at least: the way with fewer slices goes first; of equally many blocks, diagonals are taken
        (_, first), (least, second) = sorted(((few, diagonals), (many, rectangles)), key=itemgetter(0))
        found = list(islice(first, MAX_PIECES + 1))
        other = list(islice(second, len(found) + 1)) if least <= len(found) else found
        yield from min((found, other) if few <= many else (other, found), key=len)

    def _slices(self, axes: list[int]) -> Iterator["Weights"]:
        """One index of each of the axes at a time."""
        for index in product(*(range(self.sizes[axis]) for axis in axes)):
            part = self
            for axis, at in zip(axes, index, strict=True):
                part = part._at(axis, at)
            yield part

    def _at(self, axis: int, index: int) -> "Weights":
        sizes = (*self.sizes[:axis], 1, *self.sizes[axis + 1 :])
        labels = (self.source, self.target, self.kind)
        ends = (each.narrow(axis, index, 1) if each.shape[axis] > 1 else each for each in labels)
        return Weights(sizes, self.strides, self.offset + index * self.strides[axis], *ends)

    def _along(self, labels: Tensor, axes: list[int]) -> Tensor:
        return labels.expand([size if axis in axes else 1 for axis, size in enumerate(self.sizes)]).flatten()

    def _positions(self, axes: list[int]) -> Tensor:
        """Offsets of the weights along some axes, the last fastest."""
        at = torch.zeros(1, dtype=torch.int64)
        for axis in axes:
            at = (at[:, None] + torch.arange(self.sizes[axis]) * self.strides[axis]).flatten()
        return at

    def _slots(self, moving: set[int]) -> list[tuple[int, int, int]]:
        """(offset, count, stride) of the weights that share an edge: those along the axes that do not move its neurons."""
        at = self._positions([axis for axis in range(len(self.sizes)) if axis not in moving])
        steps = at.diff()
        if len(at) == 1 or (steps == steps[0]).all():
            return [(0, len(at), int(steps[0]) if len(at) > 1 else 0)]
        return [(int(offset), 1, 0) for offset in at]

    def rectangles(self, parameter: int) -> Iterator[Block]:
        """The blocks, where no axis moves both neurons."""
        source, target = ([axis for axis, size in enumerate(labels.shape) if size > 1] for labels in (self.source, self.target))
        starts = _all_stretches(self._along(self.source, source), self._positions(source))
        ends = _all_stretches(self._along(self.target, target), self._positions(target), self._along(self.kind, target))
        for first, second, slots in product(starts, ends, self._slots({*source, *target})):
            yield from _rectangle(parameter, self.offset, first, second, slots)

    def diagonals(self, parameter: int, axes: list[int]) -> Iterator[Block]:
        """The blocks, where the axes move both neurons together."""
        source, target = self._along(self.source, axes), self._along(self.target, axes)
        at, kind, slots = self._positions(axes), self._along(self.kind, axes), self._slots({*axes})
        follows = (source.diff() == 1) & (target.diff() == 1) & (kind.diff() == 0) & (at.diff() >= 0)
        for first, count, stride in _runs(follows, at.diff()):
            ends = (int(kind[first]), int(source[first]), count, int(target[first]), count)
            for offset, many, slot_stride in slots:
                yield Block(*ends, True, parameter, self.offset + int(at[first]) + offset, stride, 0, many, slot_stride)


def _runs(follows: Tensor, steps: Tensor) -> Iterator[tuple[int, int, int]]:
    """(first, count, step) of stretches in which each follows the one before, all at one distance."""
    if len(follows) and follows.all() and (steps == steps[0]).all():
        yield 0, len(follows) + 1, int(steps[0])
        return
    first, going, distance = 0, [*follows.tolist(), False], steps.tolist()
    for index, goes_on in enumerate(going):
        if not goes_on or (index > first and distance[index] != distance[first]):
            yield first, index - first + 1, distance[first] if index > first else 0
            first = index + 1


def _all_stretches(neurons: Tensor, at: Tensor, kind: Tensor | None = None) -> list[Stretch]:
    """Group the weights along one side by neuron, then neurons into runs."""
    kind = torch.zeros_like(neurons) if kind is None else kind
    order = torch.argsort(kind * (int(neurons.max()) + 1) + neurons, stable=True)
    neurons, at, kind = neurons[order], at[order], kind[order]
    _, inverse, counts = torch.unique_consecutive(torch.stack([kind, neurons]), dim=1, return_inverse=True, return_counts=True)
    repeats = int(counts[0])
    if (counts == repeats).all():
        # the weights of one neuron lie side by side, as positions of a flattened image do; a recurrent layer's gates do not
        table = at.view(-1, repeats)
        steps = table.diff(dim=1)
        step = int(steps[0, 0]) if repeats > 1 else 0
        apart = int(table[1, 0] - table[0, 0]) if len(table) > 1 else step * repeats
        if repeats == 1 or (0 < step * repeats <= apart and bool((steps == step).all())):
            return list(_stretches(neurons[::repeats], table[:, 0], kind[::repeats], repeats, step))
    rank = torch.arange(len(at)) - (counts.cumsum(0) - counts)[inverse]
    chosen = (rank == index for index in range(int(counts.max())))
    return [run for mask in chosen for run in _stretches(neurons[mask], at[mask], kind[mask], 1, 0)]


def _stretches(neurons: Tensor, at: Tensor, kind: Tensor, repeats: int, repeat_stride: int) -> Iterator[Stretch]:
    follows = (neurons.diff() == 1) & (kind.diff() == 0) & (at.diff() >= 0)
    for first, count, stride in _runs(follows, at.diff()):
        yield Stretch(int(neurons[first]), count, int(at[first]), stride, repeats, repeat_stride, int(kind[first]))


def _rectangle(parameter: int, offset: int, first: Stretch, second: Stretch, slots: tuple[int, int, int]) -> Iterator[Block]:
    """Weights of one edge may repeat on three accounts; the most numerous share the edge, the others become parallel edges."""
    repeats = [(slots[1], slots[2]), (first.repeats, first.repeat_stride), (second.repeats, second.repeat_stride)]
    repeats.sort(key=lambda pair: -pair[0])
    (count, stride), *others = repeats
    ends = (second.kind, first.start, first.count, second.start, second.count)
    start = offset + first.offset + second.offset + slots[0]
    for indices in product(*(range(number) for number, _ in others)):
        place = start + sum(index * step for index, (_, step) in zip(indices, others, strict=True))
        yield Block(*ends, False, parameter, place, first.stride, second.stride, count, stride)
