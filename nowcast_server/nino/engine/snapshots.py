"""The context as the engine reads it: where it lies, in whatever precision, standardised a unit at a time.

Standardising is left to the moment a unit is read: (w - m) / (s + eps), as the model was trained. Folding m and s into the first
projection as well would save nothing measurable and cancel badly where a tensor's mean dwarfs its spread (norm weights).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from nowcast_server.nino.engine.placement import Placement
from nowcast_server.nino.engine.plan import Bundle, Panel, Unit
from nowcast_server.nino.engine.workers import in_order
from nowcast_server.nino.standardise import EPSILON, LEAST_SCALE
from protos.wiring import STRUCTURE, Wiring

CHUNK: Final = 1 << 14
"""Weights of one snapshot that are summed up at once when scales are fitted."""


@dataclass(frozen=True, slots=True)
class Read:
    """A unit's weights, standardised, and the map back: w = z * scale + mean.

    Args:
        z: (slots, context, *edges) float32, edges (outer, inner) for a panel, (E,) for a bundle.
        mean: broadcasts to (slots, *edges).
        scale: likewise.
    """

    z: Tensor
    mean: Tensor
    scale: Tensor

    @property
    def x(self) -> Tensor:
        """(slots * context, E): the rows the first stage multiplies."""
        return self.z.flatten(0, 1).flatten(1)


class Snapshots:
    """Reads a context.

    Args:
        states: c snapshots (n,), raw, each of unit stride; float32, float16 or bfloat16. Never written to.
        wiring: of the network.
        scaling: `std`, `std-param` or `min-max`, as in `Standardisation`.
        placement: where units are computed.
        keep: whether units that were read stay in memory for the next walk.
    """

    def __init__(self, states: Sequence[Tensor], wiring: Wiring, *, scaling: str, placement: Placement, keep: bool) -> None:
        self.rows = states
        self._kept: dict[int, Read] | None = {} if keep else None
        self._placement = placement
        self.context = len(states)
        self._per_weight = scaling == "std-param"
        if not self._per_weight:
            self.mean, self.scale = _fit(states, wiring, scaling=scaling, threads=placement.threads)

    def read(self, unit: Unit) -> Read:
        """A unit's weights; constants for structure and self loops."""
        if self._kept is None:
            return self._read(unit)
        if id(unit) not in self._kept:
            self._kept[id(unit)] = self._read(unit)
        return self._kept[id(unit)]

    def _read(self, unit: Unit) -> Read:
        return self._bundle(unit) if isinstance(unit, Bundle) else self._panel(unit)

    def _panel(self, panel: Panel) -> Read:
        shape = (panel.slots, self.context, panel.outer, panel.inner)
        if panel.parameter == STRUCTURE:
            return _constant(torch.ones(shape, dtype=torch.float32, device=self._placement.device))
        z = self._placement.pack([panel_view(row, panel) for row in self.rows], shape)
        if self._per_weight:
            return _by_weight(z)
        return _standardise(z, self.mean[panel.parameter], self.scale[panel.parameter])

    def _bundle(self, bundle: Bundle) -> Read:
        if not bundle.carries:
            return _constant(bundle.feature.repeat(1, self.context, 1))
        position = bundle.position.T  # (slots, E)
        z = self._placement.pack([row[position] for row in self.rows], (bundle.slots, self.context, bundle.edges))
        if self._per_weight:
            return _by_weight(z)
        return _standardise(z, self.mean[bundle.parameter].to(z.device), self.scale[bundle.parameter].to(z.device))


def panel_view(row: Tensor, panel: Panel) -> Tensor:
    """The weights of a panel in a flat vector, as a view: (slots, outer, inner)."""
    shape, strides = (panel.slots, panel.outer, panel.inner), (panel.slot_stride, panel.outer_stride, panel.inner_stride)
    return row.as_strided(shape, strides, row.storage_offset() + panel.position)


def _constant(z: Tensor) -> Read:
    return Read(z, torch.tensor(0.0, dtype=torch.float32), torch.tensor(1.0, dtype=torch.float32))


def _standardise(z: Tensor, mean: Tensor, scale: Tensor) -> Read:
    return Read(z.sub_(mean).div_(scale + EPSILON), mean, scale)


def _by_weight(z: Tensor) -> Read:
    scale, mean = torch.std_mean(z, dim=1)
    scale.clamp_(min=LEAST_SCALE)
    return Read(z.sub_(mean[:, None]).div_(scale[:, None] + EPSILON), mean, scale)


def _fit(states: Sequence[Tensor], wiring: Wiring, *, scaling: str, threads: int) -> tuple[Tensor, Tensor]:
    """Mean and scale of every tensor over all its snapshots: (parameters,) float32 each."""
    sizes = torch.tensor([parameter.size for parameter in wiring.parameters])
    spans = [
        (index, start, min(start + CHUNK, offset + parameter.size))
        for index, (offset, parameter) in enumerate(zip(wiring.offsets, wiring.parameters, strict=True))
        for start in range(offset, offset + parameter.size, CHUNK)
    ]
    if scaling == "min-max":
        return _range(states, spans, len(sizes), threads)
    return _moments(states, spans, sizes.double(), threads)


Span = tuple[int, int, int]  # tensor, first position, end


def _moments(states: Sequence[Tensor], spans: Sequence[Span], sizes: Tensor, threads: int) -> tuple[Tensor, Tensor]:
    # sums about a first guess of each mean, in float64: exact however far the mean lies from zero
    first = {index: float(states[0][start]) for index, start, _ in reversed(spans)}

    def sums(span: Span) -> Tensor:
        index, start, stop = span
        chunks = torch.stack([row[start:stop] for row in states]).double().sub_(first[index])
        return torch.stack((chunks.sum(), chunks.square_().sum())).cpu()

    total = torch.zeros(len(sizes), 2, dtype=torch.float64)
    for (index, _, _), part in zip(spans, in_order(sums, spans, threads=threads), strict=True):
        total[index] += part
    count = sizes * len(states)
    shift = torch.zeros(len(sizes), dtype=torch.float64)
    shift[list(first)] = torch.tensor(list(first.values()), dtype=torch.float64)
    moved = total[:, 0] / count
    variance = (total[:, 1] - count * moved.square()) / (count - 1)
    return (shift + moved).float(), variance.clamp_(min=0).sqrt().float()


def _range(states: Sequence[Tensor], spans: Sequence[Span], count: int, threads: int) -> tuple[Tensor, Tensor]:
    def extremes(span: Span) -> Tensor:
        chunk = torch.stack([row[span[1] : span[2]].float() for row in states])
        return torch.stack((chunk.amin(), chunk.amax())).cpu()

    low, high = (torch.full((count,), bound, dtype=torch.float32) for bound in (torch.inf, -torch.inf))
    for (index, _, _), (least, most) in zip(spans, in_order(extremes, spans, threads=threads), strict=True):
        low[index], high[index] = torch.minimum(low[index], least), torch.maximum(high[index], most)
    return torch.zeros(count, dtype=torch.float32), (high - low).clamp_(min=LEAST_SCALE)
