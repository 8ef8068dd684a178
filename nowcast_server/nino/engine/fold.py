"""Folding: a checkpoint's weights multiplied out, once, into the few matrices the engine needs for each edge.

Wherever two linear maps follow one another, or a linear map follows a sum, their product is formed here in float64. What is
left is a chain of stages of an edge's hidden vector h, beginning with its standardised weights (slots x context):

    h := act(h M + b[type] + x_s M_s + x_t M_t)

For NiNo one stage is one edge update, with the update's output layer folded into whatever reads it. WNN is the same
chain without neurons.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nowcast_server.nino.options import EDGE_TYPES, WNN_LAYERS, ModelOptions


@dataclass(frozen=True, slots=True)
class Affine:
    """An affine map of row vectors whose constant depends on the edge's type.

    Args:
        matrix: (width in, width out), to be multiplied from the right.
        bias: (edge types, width out).
        narrow: the matrix in bfloat16, once it is on its device.
    """

    matrix: Tensor
    bias: Tensor
    narrow: Tensor | None = None

    def then(self, weight: Tensor, bias: Tensor) -> "Affine":
        """This map followed by `torch.nn.functional.linear(_, weight, bias)`."""
        return Affine(self.matrix @ weight.T, self.bias @ weight.T + bias)

    def to(self, device: torch.device) -> "Affine":
        matrix = _single(self.matrix, device)
        return Affine(matrix, _single(self.bias, device), matrix.bfloat16())


@dataclass(frozen=True, slots=True)
class EdgeStage:
    """One stage of the chain; `at_source` and `at_target` (H, H) are None where no neuron enters."""

    edge: Affine
    at_source: Tensor | None = None
    at_target: Tensor | None = None

    def to(self, device: torch.device) -> "EdgeStage":
        return EdgeStage(self.edge.to(device), _maybe(self.at_source, device), _maybe(self.at_target, device))


@dataclass(frozen=True, slots=True)
class NeuronStage:
    """One convolution and the activation after it: messages `scale(h) * (A[t] + B[s]) + shift(h)`, averaged, to new neurons.

    Args:
        level: how many edge stages have run before it.
        scale: of messages, from h.
        shift: of messages, from h.
        to_target: A = x to_target + to_target_bias, (H, H) and (H,).
        to_source: B = x to_source + to_source_bias, (H, H) and (H,).
        own: new x = act(x own + mean_message message + bias), (H, H).
        message: see `own`.
        bias: see `own`, (H,).
    """

    level: int
    scale: Affine
    shift: Affine
    to_target: Tensor
    to_target_bias: Tensor
    to_source: Tensor
    to_source_bias: Tensor
    own: Tensor
    message: Tensor
    bias: Tensor

    def to(self, device: torch.device) -> "NeuronStage":
        rest = (self.to_target, self.to_target_bias, self.to_source, self.to_source_bias, self.own, self.message, self.bias)
        return NeuronStage(self.level, self.scale.to(device), self.shift.to(device), *(_single(t, device) for t in rest))

    def after(self, weight: Tensor, bias: Tensor) -> "NeuronStage":
        """The stage for neurons that are `x weight + bias`, from x."""
        return replace(
            self,
            to_target=weight @ self.to_target,
            to_target_bias=bias @ self.to_target + self.to_target_bias,
            to_source=weight @ self.to_source,
            to_source_bias=bias @ self.to_source + self.to_source_bias,
            own=weight @ self.own,
            bias=bias @ self.own + self.bias,
        )


@dataclass(frozen=True, slots=True)
class Folded:
    """A whole model.

    Args:
        options: of the checkpoint.
        edge_stages: the chain.
        neuron_stages: the i-th one makes the neurons that the i-th edge stage *with neurons* reads.
        last: the readout's hidden layer, from h.
        readout: (slots, max_horizon, H), `update_scale` included.
        readout_bias: (slots, max_horizon).
        neurons_in: weights and biases that map Laplacian features to neurons, with activations between; a single map is folded into
            the first of `neuron_stages`.
        words: (vocabulary + 1, H) word embedding, or None.
    """

    options: ModelOptions
    edge_stages: tuple[EdgeStage, ...]
    neuron_stages: tuple[NeuronStage, ...]
    last: Affine
    readout: Tensor
    readout_bias: Tensor
    neurons_in: tuple[tuple[Tensor, Tensor], ...]
    words: Tensor | None

    def to(self, device: torch.device) -> "Folded":
        """In float32 on `device`."""
        return Folded(
            self.options,
            tuple(stage.to(device) for stage in self.edge_stages),
            tuple(stage.to(device) for stage in self.neuron_stages),
            self.last.to(device),
            _single(self.readout, device),
            _single(self.readout_bias, device),
            tuple((_single(weight, device), _single(bias, device)) for weight, bias in self.neurons_in),
            _maybe(self.words, device),
        )

    def rows(self, horizons: Sequence[int], *, slots: int) -> tuple[Tensor, Tensor]:
        """Readout of the given horizons and the first `slots` slots: (len(horizons) * slots, H) and (…, 1), horizon by horizon."""
        # views alone: a list of horizons as an index would be copied to the device
        matrix = torch.stack([self.readout[:slots, horizon - 1] for horizon in horizons])
        bias = torch.stack([self.readout_bias[:slots, horizon - 1] for horizon in horizons])
        return matrix.flatten(0, 1), bias.view(-1, 1)


def fold(options: ModelOptions, tensors: Mapping[str, Tensor]) -> Folded:
    """Fold a checkpoint's `options` and `tensors`."""
    weights = _Weights(tensors)
    edge_stages, neuron_stages = list[EdgeStage](), list[NeuronStage]()
    state = _edges_in(options, weights, edge_stages)
    if options.graph:
        for layer in range(options.edge_updates):
            neuron_stages.append(_convolution(options, weights, layer, level=len(edge_stages), state=state))
            update = f"edge_updates.{layer}"
            edge, source, target, out = (weights.linear(f"{update}.{name}") for name in ("edge", "source", "target", "out"))
            mixed = state.then(edge[0], edge[1] + source[1] + target[1])
            edge_stages.append(EdgeStage(mixed, source[0].T, target[0].T))
            state = Affine(out[0].T, out[1].expand_as(state.bias))
        head, layers = "edge_out", 2
    else:
        head, layers = "horizons_out", WNN_LAYERS
    *inner, hidden, out = (weights.linear(f"{head}.{2 * index}") for index in range(layers))
    for weight, bias in inner:
        edge_stages.append(EdgeStage(state.then(weight, bias)))
        state = Affine(_eye(state), torch.zeros_like(state.bias))
    neurons_in = _neurons_in(options, weights)
    if len(neurons_in) == 1 and neuron_stages and not options.vocabulary:
        neuron_stages[0], neurons_in = neuron_stages[0].after(*neurons_in[0]), ()
    shape = (options.slots if options.graph else 1, options.max_horizon)
    return Folded(
        options,
        tuple(edge_stages),
        tuple(neuron_stages),
        state.then(*hidden),
        out[0].view(*shape, -1) * options.update_scale,
        out[1].view(shape) * options.update_scale,
        neurons_in,
        weights.get("word_embedding.weight") if options.graph and options.vocabulary else None,
    )


class _Weights:
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def get(self, name: str) -> Tensor:
        return self._tensors[name].detach().double()

    def linear(self, name: str) -> tuple[Tensor, Tensor]:
        return self.get(f"{name}.weight"), self.get(f"{name}.bias")


def _edges_in(options: ModelOptions, weights: _Weights, stages: list[EdgeStage]) -> Affine:
    """Edges before the first update, as an affine map of the weights themselves or, with two input layers, of a first stage."""
    types = options.edge_types or EDGE_TYPES
    zero = torch.zeros(types, options.hidden, dtype=torch.float64)
    matrix, bias = weights.linear("edge_in.0")
    state = Affine(matrix.T, bias.expand_as(zero))
    if options.input_layers == 2:
        stages.append(EdgeStage(state))
        matrix, bias = weights.linear("edge_in.2")
        state = Affine(matrix.T, bias.expand_as(zero))
    embedding = weights.get("edge_type_embedding.weight") if options.edge_types else zero
    return Affine(state.matrix, state.bias + embedding)


def _convolution(options: ModelOptions, weights: _Weights, layer: int, *, level: int, state: Affine) -> NeuronStage:
    name, towers = f"convs.{layer}", range(options.towers)
    scale, shift = (part.repeat(options.towers, 1) for part in weights.get(f"{name}.modulation.weight").chunk(2))
    scale_bias, shift_bias = (part.repeat(options.towers) for part in weights.get(f"{name}.modulation.bias").chunk(2))
    # towers are blocks on the diagonal of one wide layer
    pre = [weights.linear(f"{name}.pre.{tower}") for tower in towers]
    post = [weights.linear(f"{name}.post.{tower}") for tower in towers]
    to_target, to_source = (_block_diagonal(parts) for parts in zip(*(w.chunk(2, dim=1) for w, _ in pre), strict=True))
    own, message = (_block_diagonal(parts) for parts in zip(*(w.chunk(2, dim=1) for w, _ in post), strict=True))
    out, out_bias = weights.linear(f"{name}.out")
    return NeuronStage(
        level,
        state.then(scale, scale_bias),
        state.then(shift, shift_bias),
        to_target.T,
        torch.cat([bias for _, bias in pre]),
        to_source.T,
        torch.zeros(options.hidden, dtype=torch.float64),
        (out @ own).T,
        (out @ message).T,
        out @ torch.cat([bias for _, bias in post]) + out_bias,
    )


def _neurons_in(options: ModelOptions, weights: _Weights) -> tuple[tuple[Tensor, Tensor], ...]:
    if not (options.graph and options.laplacian):
        return ()
    layers = [weights.linear(f"node_in.{2 * index}") for index in range(options.input_layers)]
    return tuple((weight.T, bias) for weight, bias in layers)


def _block_diagonal(parts: Sequence[Tensor]) -> Tensor:
    whole: Tensor = torch.block_diag(*parts)  # type: ignore[no-untyped-call]  # torch leaves it unannotated
    return whole


def _eye(state: Affine) -> Tensor:
    return torch.eye(state.matrix.shape[1], dtype=torch.float64)


def _single(tensor: Tensor, device: torch.device) -> Tensor:
    return tensor.to(device, torch.float32).contiguous()


def _maybe(tensor: Tensor | None, device: torch.device) -> Tensor | None:
    return None if tensor is None else _single(tensor, device)
