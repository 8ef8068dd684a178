"""The context as the engine reads it: where units are computed, in whatever precision, standardised a unit at a time.

Standardising is left to the moment a unit is read: (w - m) / (s + eps), as the model was trained. Folding m and s into the first
projection as well would save nothing measurable and cancel badly where a tensor's mean dwarfs its spread (norm weights).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from nowcast_server.nino.checkpoint import EPSILON
from nowcast_server.nino.engine.bundles import CARRIED, Bundle
from nowcast_server.nino.engine.plan import Panel, Plan, Unit
from nowcast_server.nino.engine.workers import Placement, in_order
from protos.wiring import Wiring


@dataclass(frozen=True, slots=True)
class Read:
    """A unit's weights, standardised, and the map back: w = z * scale + mean."""

    z: Tensor  # (slots, context, *edges) float32, edges (outer, inner) for a panel, (E,) for a bundle
    mean: Tensor | None  # broadcasts to (slots, *edges); None where `Snapshots.restore` brings all forecasts back together
    scale: Tensor | None  # likewise

    @property
    def x(self) -> Tensor:
        """(slots * context, E): the rows the first stage multiplies."""
        return self.z.flatten(0, 1).flatten(1)


class Snapshots:
    """Reads a context: c snapshots (n,), raw, each of unit stride, on the placement's device; float32, float16 or bfloat16, and
    never written.
    """

    def __init__(self, states: Sequence[Tensor], wiring: Wiring, *, plan: Plan, placement: Placement) -> None:
        self.rows = states
        self._device = placement.device
        self.context = len(states)
        self.mean, self.scale = _moments(states, wiring, plan.tensor_sizes, placement)
        self._whole = self._standardise_whole(plan.tensor_sizes) if plan.single else None

    def read(self, unit: Unit) -> Read:
        """A unit's weights; constants for structure and self loops."""
        return self._panel(unit) if isinstance(unit, Panel) else self._bundle(unit)

    def restore(self, out: Tensor) -> None:
        """Bring forecasts (horizons, n) back to the weights' own scale, unless each unit's have been."""
        if self._whole is not None:
            out.add_(self._whole[-1, : out.shape[1]]).mul_(self.scale).add_(self.mean)

    def _panel(self, panel: Panel) -> Read:
        shape = (panel.slots, self.context, panel.outer, panel.inner)
        if not panel.carries:
            return Read(torch.ones(shape, dtype=torch.float32, device=self._device), None, None)
        z = torch.empty(shape, dtype=torch.float32, device=self._device)
        for index, row in enumerate(self.rows):
            z[:, index] = panel_view(row, panel)
        return self._standardised(z, panel.block.parameter)

    def _bundle(self, bundle: Bundle) -> Read:
        # edge by edge in memory, as the first stage's product wants it
        shape = (bundle.edges, bundle.slots, self.context)
        z = torch.empty(shape, dtype=torch.float32, device=self._device).permute(1, 2, 0)
        if self._whole is not None:
            for index, row in enumerate(self._whole):
                torch.take(row, bundle.position, out=z[:, index].T)
            return Read(z, None, None)
        if not bundle.carries:
            return Read(z.copy_(bundle.feature), None, None)
        for index, row in enumerate(self.rows):
            z[:, index] = row.take(bundle.position).T
        return self._standardised(z, bundle.parameter)

    def _standardise_whole(self, sizes: Tensor) -> Tensor:
        """All weights, and after them what edges without weights carry: (context, n + len(CARRIED))."""
        size = len(self.rows[0])
        whole = torch.empty(self.context, size + len(CARRIED), dtype=torch.float32, device=self._device)
        for index, value in enumerate(CARRIED):
            whole[:, size + index].fill_(value)
        values = torch.stack(list(self.rows)).float()
        both = torch.stack((self.mean, self.scale))
        self.mean, self.scale = both.repeat_interleave(sizes.long(), dim=1, output_size=size)
        torch.sub(values, self.mean, out=whole[:, :size])
        whole[:, :size] /= self.scale + EPSILON
        return whole

    def _standardised(self, z: Tensor, parameter: int | Tensor) -> Read:
        mean, scale = self.mean[parameter], self.scale[parameter]
        z.sub_(mean).div_(scale + EPSILON)
        return Read(z, mean, scale)


def panel_view(row: Tensor, panel: Panel) -> Tensor:
    """The weights of a panel in a flat vector, as a view: (slots, outer, inner)."""
    strides = panel.block.slot_stride, panel.block.target_stride, panel.block.source_stride
    return row.as_strided((panel.slots, panel.outer, panel.inner), strides, row.storage_offset() + panel.position)


class _Span(NamedTuple):
    """Weights of one snapshot that are looked at in one go: whole tensors, or a part of a large one."""

    tensors: slice  # whose they are
    starts: tuple[int, ...]  # where each of these tensors begins in the flat vector
    start: int  # where the span begins
    sizes: tuple[int, ...]  # how many weights it has of each tensor


def _spans(wiring: Wiring, most: int) -> list[_Span]:
    """Cut the flat vector into spans of at most `most` weights."""
    spans = list[_Span]()
    for index, (offset, parameter) in enumerate(zip(wiring.offsets, wiring.parameters, strict=True)):
        if spans and sum(spans[-1].sizes) + parameter.size <= most and spans[-1].starts[0] == spans[-1].start:
            last = spans.pop()
            tensors = slice(last.tensors.start, index + 1)
            spans.append(_Span(tensors, (*last.starts, offset), last.start, (*last.sizes, parameter.size)))
            continue
        for start in range(offset, offset + max(1, parameter.size), most):
            size = min(most, offset + parameter.size - start)
            spans.append(_Span(slice(index, index + 1), (offset,), start, (size,)))
    return spans


def _moments(states: Sequence[Tensor], wiring: Wiring, sizes: Tensor, placement: Placement) -> tuple[Tensor, Tensor]:
    """Mean and unbiased standard deviation of every tensor over all its snapshots: (tensors,) float32 each."""

    # sums about a first guess of each mean, added up in float64: exact however far the mean lies from zero
    def sums(span: _Span) -> tuple[slice, Tensor, Tensor]:
        last = len(states[0]) - 1  # where a tensor without weights may begin
        first = torch.stack([states[0][min(start, last)] for start in span.starts]).double()
        about = (
            first[0] if len(first) == 1 else torch.cat([each.expand(size) for each, size in zip(first, span.sizes, strict=True)])
        )
        rows = torch.stack([row[span.start : span.start + sum(span.sizes)] for row in states])
        values = rows.float() - about  # sums in 16 bits would lose digits, or overflow
        both = torch.stack((values.sum(dim=0), values.square_().sum(dim=0)))
        parts = torch.split(both, list(span.sizes), dim=1)
        return span.tensors, first, torch.stack([part.sum(dim=1) for part in parts])

    total = torch.zeros(len(sizes), 3, dtype=torch.float64, device=placement.device)
    for tensors, first, part in in_order(sums, _spans(wiring, placement.sizes.span), threads=placement.threads):
        total[tensors, :2] += part
        total[tensors, 2] = first
    count = sizes * len(states)
    moved = total[:, 0] / count
    variance = (total[:, 1] - count * moved.square()) / (count - 1)
    return (total[:, 2] + moved).float(), variance.clamp_(min=0).sqrt_().float()
