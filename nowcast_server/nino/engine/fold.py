"""Folding: a checkpoint's weights multiplied out, once, into the few matrices the engine needs for each edge.

Wherever two linear maps follow one another, or a linear map follows a sum, their product is formed here in float64. What is
left is a chain of stages of an edge's hidden vector h, beginning with its standardised weights (slots x context):

    h := silu(h M + b[type] + x_s M_s + x_t M_t)

For NiNo one stage is one edge update, with the update's output layer folded into whatever reads it. WNN is the same
chain without neurons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nowcast_server.nino.checkpoint import WNN_LAYERS, ModelOptions


@dataclass(frozen=True, slots=True)
class Affine:
    """An affine map of row vectors: `matrix` (width in, width out) from the right, `bias` (edge types, width out)."""

    matrix: Tensor
    bias: Tensor

    def then(self, weight: Tensor, bias: Tensor) -> "Affine":
        """This map followed by `torch.nn.functional.linear(_, weight, bias)`."""
        return Affine(self.matrix @ weight.T, self.bias @ weight.T + bias)


@dataclass(frozen=True, slots=True)
class EdgeStage:
    """One stage of the chain; `at_source` and `at_target` (H, H) are None where no neuron enters."""

    edge: Affine
    at_source: Tensor | None = None
    at_target: Tensor | None = None


@dataclass(frozen=True, slots=True)
class NeuronStage:
    """One convolution and the activation after it: messages `scale(h) * (A[t] + B[s]) + shift(h)`, averaged, to new neurons."""

    level: int  # how many edge stages have run before it
    scale: Affine  # of messages, from h
    shift: Affine  # of messages, from h
    to_target: Tensor  # A = x to_target + to_target_bias, (H, H) and (H,)
    to_target_bias: Tensor
    to_source: Tensor  # B = x to_source, (H, H)
    own: Tensor  # new x = silu(x own + mean_message message + bias), (H, H)
    message: Tensor  # see `own`
    bias: Tensor  # see `own`, (H,)


@dataclass(frozen=True, slots=True)
class Folded:
    edge_stages: tuple[EdgeStage, ...]  # the chain
    neuron_stages: tuple[NeuronStage, ...]  # the i-th one makes the neurons that the i-th edge stage *with neurons* reads
    last: Affine  # the readout's hidden layer, from h
    readout: Tensor  # (slots, max_horizon, H)
    readout_bias: Tensor  # (slots, max_horizon)
    neurons_in: tuple[Tensor, Tensor] | None  # (laplacian, H) and (H,), which map Laplacian features to neurons; None for WNN
    words: Tensor | None  # (vocabulary + 1, H) word embedding, or None

    def rows(self, horizons: Sequence[int], *, slots: int) -> tuple[Tensor, Tensor]:
        """Readout of the given horizons and the first `slots` slots: (len(horizons) * slots, H) and (…, 1), horizon by horizon."""
        # views alone: a list of horizons as an index would be copied to the device
        matrix = torch.stack([self.readout[:slots, horizon - 1] for horizon in horizons])
        bias = torch.stack([self.readout_bias[:slots, horizon - 1] for horizon in horizons])
        return matrix.flatten(0, 1), bias.view(-1, 1)


def fold(options: ModelOptions, tensors: Mapping[str, Tensor]) -> Folded:
    """Fold a checkpoint's `options` and `tensors`."""
    weights = {name: tensor.detach().double() for name, tensor in tensors.items()}
    edge_stages, neuron_stages = list[EdgeStage](), list[NeuronStage]()
    matrix, bias = _linear(weights, "edge_in.0")
    state = Affine(matrix.T, bias + weights["edge_type_embedding.weight"])
    head, layers = ("edge_out", 2) if options.graph else ("horizons_out", WNN_LAYERS)
    for layer in range(options.layers - 1 if options.graph else 0):
        neuron_stages.append(_convolution(weights, layer, state=state))
        names = ("edge", "source", "target", "out")
        edge, source, target, out = (_linear(weights, f"edge_updates.{layer}.{name}") for name in names)
        edge_stages.append(EdgeStage(state.then(edge[0], edge[1] + source[1] + target[1]), source[0].T, target[0].T))
        state = Affine(out[0].T, out[1].expand_as(state.bias))
    *inner, hidden, out = (_linear(weights, f"{head}.{2 * index}") for index in range(layers))
    for weight, bias in inner:
        edge_stages.append(EdgeStage(state.then(weight, bias)))
        state = Affine(torch.eye(options.hidden, dtype=torch.float64), torch.zeros_like(state.bias))
    shape = (options.slots if options.graph else 1, options.max_horizon)
    return Folded(
        tuple(edge_stages),
        tuple(neuron_stages),
        state.then(*hidden),
        out[0].view(*shape, -1),
        out[1].view(shape),
        (weights["node_in.0.weight"].T, weights["node_in.0.bias"]) if options.graph else None,
        weights.get("word_embedding.weight") if options.graph else None,
    )


def _linear(weights: Mapping[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _convolution(weights: Mapping[str, Tensor], layer: int, *, state: Affine) -> NeuronStage:
    names = ("modulation", "pre.0", "post.0", "out")
    modulation, pre, post, out = (_linear(weights, f"convs.{layer}.{name}") for name in names)
    scale, shift = zip(*(each.chunk(2) for each in modulation), strict=True)
    (to_target, to_source), (own, message) = (weight.chunk(2, dim=1) for weight, _ in (pre, post))
    return NeuronStage(
        layer,
        state.then(*scale),
        state.then(*shift),
        to_target.T,
        pre[1],
        to_source.T,
        (out[0] @ own).T,
        (out[0] @ message).T,
        out[0] @ post[1] + out[1],
    )
