r"""NiNo's forward pass for training: the reference's function and gradients with a third of its products.

An edge's features are never formed: they are an affine map :math:`L g + l` of what the edge holds, its snapshots in the first
layer and an activation later, and every further linear map is folded into L (design: the streaming engine's algebra).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from trainer_worker.metatrain.model import EdgeModulatedConv, EdgeUpdate, NiNo
from trainer_worker.metatrain.plan import DensePart, Part, Plan


@dataclass(frozen=True, slots=True)
class _Held:
    """What a part's edges hold, and how it becomes their features: `held @ weight.T + bias`.

    Args:
        held: (windows, *shape, C).
        weight: (H, C).
        bias: (H,), or (E, H) where the edges of a list differ in type.
    """

    held: Tensor
    weight: Tensor
    bias: Tensor

    def mapped(self, layer_weight: Tensor, layer_bias: Tensor) -> Tensor:
        """A linear layer of the features: (windows, *shape, out)."""
        return self.held @ (layer_weight @ self.weight).T + self.constant(layer_weight, layer_bias)

    def constant(self, layer_weight: Tensor, layer_bias: Tensor) -> Tensor:
        """What that layer gives for nothing held."""
        return self.bias @ layer_weight.T + layer_bias


def forecast_change(model: NiNo, plan: Plan, z: Tensor, node_pe: Tensor, *, horizons: Sequence[int]) -> Tensor:
    """How far `model` says each weight moves, for a batch of windows of one wiring.

    Args:
        model: the readable one, whose weights are used.
        plan: of the wiring.
        z: (windows, context, n) standardised.
        node_pe: (windows, N, laplacian).
        horizons: 1..max_horizon.

    Returns:
        (windows, m, horizons) standardised, for the weights `plan.weights`.
    """
    held = [_enter(model, part, z) for part in plan.parts]
    neurons = model.node_in(node_pe)
    for conv, update in zip(model.convs, model.edge_updates, strict=False):  # the last convolution reaches no forecast
        mean = sum(_messages(cast("EdgeModulatedConv", conv), *pair, neurons) for pair in zip(plan.parts, held, strict=True))
        neurons = model.act(_node_update(cast("EdgeModulatedConv", conv), neurons, cast("Tensor", mean) / plan.incoming))
        held = [_edge_update(cast("EdgeUpdate", update), *pair, neurons) for pair in zip(plan.parts, held, strict=True)]
    outputs = [_read_out(model, *pair, horizons) for pair in zip(plan.parts, held, strict=True) if (pair[0].positions >= 0).any()]
    return torch.cat(outputs, dim=1)


def _enter(model: NiNo, part: Part, z: Tensor) -> _Held:
    first = cast("nn.Linear", model.edge_in[0])
    held = part.features(z)
    bias = first.bias + model.edge_type_embedding.weight[part.edge_type]
    return _Held(held, first.weight[:, : held.shape[-1]], bias[0] if isinstance(part, DensePart) else bias)


def _messages(conv: EdgeModulatedConv, part: Part, edges: _Held, neurons: Tensor) -> Tensor:
    """Sum of the messages that reach each neuron: (windows, N, H)."""
    count = neurons.shape[1]
    pre = cast("nn.Linear", conv.pre[0])
    to_target, to_source = pre.weight.chunk(2, dim=1)
    scale_w, shift_w = conv.modulation.weight.chunk(2)
    scale_b, shift_b = conv.modulation.bias.chunk(2)
    at_source = functional.linear(neurons, to_source)
    at_target = functional.linear(neurons, to_target, pre.bias)
    if isinstance(part, DensePart):
        # sums over sources commute with the linear maps, so only scale * at_source is left to each edge
        sources = part.source.stop - part.source.start
        total = edges.held.sum(1)
        scale = total @ (scale_w @ edges.weight).T + sources * edges.constant(scale_w, scale_b)
        shift = total @ (shift_w @ edges.weight).T + sources * edges.constant(shift_w, shift_b)
        product = _scaled_sources(edges, scale_w @ edges.weight, edges.constant(scale_w, scale_b), at_source[:, part.source])
        return part.spread(scale * at_target[:, part.target] + product + shift, count)
    ends = part.at_target(at_target) + part.at_source(at_source)
    return part.total(edges.mapped(scale_w, scale_b) * ends + edges.mapped(shift_w, shift_b), count)


def _scaled_sources(edges: _Held, weight: Tensor, constant: Tensor, sources: Tensor) -> Tensor:
    """Sum over sources s of `(weight @ held_st + constant) * source_s`: (windows, targets, H)."""
    windows, count, targets, held = edges.held.shape
    if held < weight.shape[0]:
        # rank C: one matrix product over sources and held numbers together, nothing of width H over edges
        spread = (sources[:, :, None] * weight.T).flatten(1, 2)  # (windows, sources * C, H)
        rows = edges.held.permute(0, 2, 1, 3).reshape(windows, targets, count * held)
        return rows @ spread + (constant * sources).sum(1, keepdim=True)
    return ((edges.held @ weight.T + constant) * sources[:, :, None]).sum(1)


def _node_update(conv: EdgeModulatedConv, neurons: Tensor, mean: Tensor) -> Tensor:
    return cast("Tensor", conv.out(conv.post[0](torch.cat((neurons, mean), dim=-1))))


def _edge_update(update: EdgeUpdate, part: Part, edges: _Held, neurons: Tensor) -> _Held:
    mixed = edges.mapped(update.edge.weight, update.edge.bias)
    mixed = mixed + part.at_source(update.source(neurons)) + part.at_target(update.target(neurons))
    return _Held(update.act(mixed), update.out.weight, update.out.bias)


def _read_out(model: NiNo, part: Part, edges: _Held, horizons: Sequence[int]) -> Tensor:
    """(windows, weights of the part, horizons)."""
    first, act, last = (model.edge_out[index] for index in range(3))
    slots = part.positions.shape[1]
    shape = (model.options.slots, model.options.max_horizon)
    rows = [horizon - 1 for horizon in horizons]
    weight = cast("nn.Linear", last).weight.view(*shape, -1)[:slots, rows].flatten(0, 1)
    bias = cast("nn.Linear", last).bias.view(shape)[:slots, rows].flatten()
    change = functional.linear(act(edges.mapped(cast("nn.Linear", first).weight, cast("nn.Linear", first).bias)), weight, bias)
    change = change.reshape(len(change), -1, len(rows))  # (windows, E * slots, horizons)
    return change[:, (part.positions >= 0).flatten()]
