"""Layers that arrive as one operator: convolutions, embeddings, normalisation."""

import torch
from torch import Tensor

from protos.wiring import EdgeType
from trainer_worker.wiring.trace.labels import Flow, Held, Shadow
from trainer_worker.wiring.trace.tracer import Call, Tracer, handles
from trainer_worker.wiring.trace.weights import attach, multiply


@handles("convolution", "_convolution")
def convolution(tracer: Tracer, call: Call) -> Shadow:
    """Weights (out, in / groups, *kernel), transposed ones (in, out / groups, *kernel)."""
    inputs, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    held, flow = tracer.get(weight), tracer.flow(inputs)
    if not isinstance(held, Held):
        return None
    grouped = _grouped(held, groups)
    own = flow.along(1, inputs.shape[1])
    axes = (1, 2) if transposed else (2, 1)
    labels = None if own is None else _by_group(tracer.labels.collapse(own, {1}).flatten(), grouped.view, axes[0])
    source, target = multiply(tracer, grouped, labels, sources={0, axes[0]}, targets={0, axes[1]}, kind=EdgeType.CONVOLUTION)
    spatial = (1,) * (inputs.dim() - 2)
    if own is None:
        tracer.assign(inputs, source.reshape(1, -1, *spatial))
    result = Flow((target.reshape(1, -1, *spatial),), plain=True)
    gain = tracer.get(bias)
    return _per_channel(tracer, gain, result, tuple(call.out.shape), EdgeType.OTHER) if isinstance(gain, Held) else result


def _grouped(held: Held, groups: int) -> Held:
    """Weights (out, in, *kernel) as (groups, out / groups, in, *kernel)."""

    def split(view: Tensor) -> Tensor:
        return view.view(groups, view.shape[0] // groups, *view.shape[1:])

    return held.seen(split(held.view), tuple(rider.seen(split(rider.view)) for rider in held.riders))


def _by_group(labels: Tensor, view: Tensor, axis: int) -> Tensor:
    """Channel labels over the groups and one axis of the weights."""
    shape = [1] * view.dim()
    shape[0], shape[axis] = view.shape[0], view.shape[axis]
    return labels.reshape(shape)


def _per_channel(tracer: Tracer, held: Held, flow: Flow, shape: tuple[int, ...], kind: EdgeType) -> Flow:
    """A vector over dimension 1."""
    channel = held.seen(held.view.reshape(held.view.numel(), *(1,) * (len(shape) - 2)))
    return attach(tracer, channel, flow, shape, kind)


@handles("embedding", "_embedding_bag", "_embedding_bag_forward_only")
def embedding(tracer: Tracer, call: Call) -> Shadow:
    """Rows looked up by index: words, or positions where the indices simply count."""
    held = tracer.get(call.args[0])
    if not isinstance(held, Held):
        return None
    found = tracer.uses.find(held)
    if found is None:
        source = tracer.labels.fresh_over(held.shape, {0})
        target = tracer.labels.fresh_over(held.shape, {1})
        indices = call.args[1]
        counting = indices.numel() > 1 and not indices.is_meta and torch.equal(indices.flatten(), torch.arange(indices.numel()))
        kind = EdgeType.POSITION_EMBEDDING if counting else EdgeType.WORD_EMBEDDING
        tracer.uses.add(held, source, target, kind, lookup=True)
    else:
        target = tracer.labels.settle(found.target)
    out = call.out if isinstance(call.out, Tensor) else call.out[0]
    return Flow((target.reshape((1,) * (out.dim() - 1) + (-1,)),), plain=True)


@handles(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_with_update", "_batch_norm_no_update", "native_group_norm",
)  # fmt: skip
def channel_norm(tracer: Tracer, call: Call) -> list[Shadow]:
    """Gain and bias over dimension 1."""
    return _normalised(tracer, call, call.args[1:3], per_channel=True)


@handles("native_layer_norm")
def layer_norm(tracer: Tracer, call: Call) -> list[Shadow]:
    """Gain and bias over the last dimensions."""
    return _normalised(tracer, call, call.args[2:4], per_channel=False)


def _normalised(tracer: Tracer, call: Call, weights: tuple[object, ...], *, per_channel: bool) -> list[Shadow]:
    inputs = call.args[0]
    if per_channel and isinstance(held := tracer.get(inputs), Held):
        return [_standardised(tracer, held, weights)]
    flow, shape = tracer.flow(inputs), tuple(inputs.shape)
    for weight, kind in zip(weights, (EdgeType.NORM, EdgeType.OTHER), strict=False):
        gain = tracer.get(weight)
        if isinstance(gain, Held):
            flow = (_per_channel if per_channel else attach)(tracer, gain, flow, shape, kind)
    return [flow]


def _standardised(tracer: Tracer, held: Held, weights: tuple[object, ...]) -> Held:
    """Weights that are normalised themselves stay weights, and the gains ride on them (weight standardisation)."""
    lead = (-1, *(1,) * (held.view.dim() - 2))
    gains = [gain for gain in map(tracer.get, weights) if isinstance(gain, Held)]
    riders = tuple(gain.seen(gain.view.reshape(lead).expand(held.shape)) for gain in gains)
    return held.seen(held.view, (*held.riders, *riders))


@handles("_weight_norm_interface")
def weight_norm(tracer: Tracer, call: Call) -> Shadow | list[Shadow]:
    """Direction times gain: the direction is the matrix, the gain rides on it."""
    direction, gain = (tracer.get(value) for value in call.args[:2])
    if not isinstance(direction, Held) or not isinstance(gain, Held):
        return None
    return [direction.seen(direction.view, (gain.seen(gain.view.expand(direction.shape)),))]
