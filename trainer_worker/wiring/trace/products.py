"""Layers: products with weights, products of two activations (attention), convolutions, embeddings, normalisation."""

from functools import partial

import torch
from torch import Tensor

from protos.wiring import EdgeType
from trainer_worker.wiring.trace.labels import Flow, Held, Pairing, Shadow, distinct, squash, varying
from trainer_worker.wiring.trace.tracer import Call, Tracer, handles, tensors_of


@handles("mm", "bmm", "mv", "dot", "vdot", "addmm", "baddbmm", "addmv", "addbmm")
def product(tracer: Tracer, call: Call) -> Shadow:
    """A product, of some operators with a bias before it."""
    biased = call.name.startswith(("add", "badd"))
    left, right = call.args[1:3] if biased else call.args[:2]
    if left.dim() != right.dim() or left.dim() not in {2, 3}:
        result = _vector_product(tracer, left, right)
    elif isinstance(held := tracer.get(right), Held):
        result = _weighed(tracer, held, left, right=True)
    elif isinstance(held := tracer.get(left), Held):
        result = _weighed(tracer, held, right, right=False)
    else:
        result = _activations(tracer, left, right)
    return tracer.attach(tracer.get(call.args[0]), result, tuple(call.out.shape), EdgeType.OTHER) if biased else result


@handles("_grouped_mm", "transformers::grouped_mm_fallback")
def grouped_product(tracer: Tracer, call: Call) -> Shadow:
    """Rows sorted by expert, each group times its expert's matrix: (rows, in) @ (experts, in, out)."""
    inputs, weight = call.args[:2]
    held, ends = tracer.get(weight), call.arg(2, "offs").tolist()
    if not isinstance(held, Held) or weight.dim() != 3:
        return None
    expert = torch.repeat_interleave(torch.arange(len(ends)), torch.tensor([0, *ends]).diff())
    labels = tracer.flow(inputs).along(1, inputs.shape[1])
    if labels is not None:  # (experts, in, 1): the rows of one expert share their neurons
        groups = [labels.expand(len(inputs), -1)[expert == index] for index in range(len(ends))]
        shared = [tracer.labels.collapse(rows, {1}) if len(rows) else tracer.labels.fresh(1, rows.shape[1]) for rows in groups]
        labels = squash(torch.stack(shared).squeeze(1).unsqueeze(-1))
    _, target = tracer.multiply(held, labels, sources={0, 1}, targets={0, 2}, kind=EdgeType.LINEAR)
    return Flow((target[expert, 0],), plain=True)


@handles("_trilinear")
def trilinear(tracer: Tracer, call: Call) -> Shadow:
    """A bilinear layer (out, in1, in2): both inputs are sources, neuron pairs of the first and second."""
    held = tracer.get(call.args[1])
    if not isinstance(held, Held) or held.view.dim() != 3:
        return None
    sources = tracer.labels.fresh(1, *held.shape[1:])
    _, target = tracer.multiply(held, sources, sources={1, 2}, targets={0}, kind=EdgeType.LINEAR)
    return Flow((target.reshape(*[1] * (call.out.dim() - 1), -1),), plain=True)


def _vector_product(tracer: Tracer, left: Tensor, right: Tensor) -> Flow:
    """A matrix times a vector: where one is weights, its other dimension is what comes out."""
    held = tracer.get(left)
    if not isinstance(held, Held) or left.dim() != 2:
        return Flow()
    inputs = tracer.flow(right).along(0, right.shape[0])
    inputs = None if inputs is None else inputs.reshape(1, -1)
    _, target = tracer.multiply(held, inputs, sources={1}, targets={0}, kind=EdgeType.LINEAR)
    return Flow((target.reshape(-1),), plain=True)


def _weighed(tracer: Tracer, held: Held, other: Tensor, *, right: bool) -> Flow:
    """A product (.., rows, in) @ (.., in, out) with weights at the right, or (.., out, in) @ (.., in, columns) at the left."""
    flow, depth = tracer.flow(other), other.dim() - 1
    inner, outer = (depth - 1, depth) if right else (depth, depth - 1)  # of the weights; `other` is summed over its own `outer`
    batch = {0} if depth == 2 and held.view.size(0) > 1 and held.view.stride(0) > 0 else set()  # experts: a matrix each
    own = flow.along(outer, other.shape[outer])
    inputs = None if own is None else tracer.labels.collapse(own, {outer} | batch).transpose(-1, -2)
    source, target = tracer.multiply(held, inputs, sources={inner} | batch, targets={outer} | batch, kind=EdgeType.LINEAR)
    if own is None:
        tracer.assign(other, source.transpose(-1, -2))
    return Flow((target, *flow.without(outer)), plain=True)


def _activations(tracer: Tracer, left: Tensor, right: Tensor) -> Flow:
    """Attention, if neither operand's neurons depend on its free dimension; else a weighted sum over rows (graph layers)."""
    first, second = tracer.flow(left), tracer.flow(right)
    depth = left.dim() - 1
    ours, theirs = first.along(depth, left.shape[depth]), second.along(depth - 1, right.shape[depth - 1])
    ours, theirs = _apart_from_rows(tracer, ours, depth), _apart_from_rows(tracer, theirs, depth - 1)
    rest = [*first.without(depth), *second.without(depth - 1)]
    if first.pairing is not None and first.pairing.normalised:
        return _attended(tracer, first.pairing, right, second)
    if ours is not None and theirs is not None and depth - 1 not in varying(ours) and depth not in varying(theirs):
        batch = left.shape[0] if depth == 2 else 1
        pairing = Pairing(_rows(ours, batch), _rows(theirs.transpose(-1, -2), batch))
        tracer.pairings.append(pairing)
        return Flow(tuple(rest), pairing=pairing)
    for labels, summed in ((ours, depth), (theirs, depth - 1)):
        if labels is not None and varying(labels) - {summed, 0}:
            rest.append(tracer.labels.collapse(labels, varying(labels) - {summed}))
    return Flow(tuple(rest), plain=True)


def _apart_from_rows(tracer: Tracer, labels: Tensor | None, dim: int) -> Tensor | None:
    """Rows that were put side by side from several layers (cached keys, memory tokens) share their neurons."""
    if labels is None:
        return None
    keep = {dim, 0} if labels.dim() == 3 else {dim}
    if varying(labels) <= keep or tracer.labels.origins(labels) == 1 or tracer.labels.of_input(labels):
        return labels
    return tracer.labels.collapse(labels, keep)


def _attended(tracer: Tracer, pairing: Pairing, values: Tensor, flow: Flow) -> Flow:
    """Values weighted by attention: heads that share values get neurons of their own for the result."""
    depth = values.dim() - 1
    own = _apart_from_rows(tracer, flow.along(depth, values.shape[depth]), depth)
    if own is None or depth - 1 in varying(own):
        own = None if own is None else tracer.labels.collapse(own, varying(own) - {depth - 1})
        return Flow(() if own is None else (own,), plain=True)
    batch = values.shape[0] if depth == 2 else 1
    value = _rows(own, batch)
    first, head = distinct(pairing.query)
    heads = len(first)
    if pairing.value is None:
        pairing.value = pairing.result = value
        if heads != len(distinct(value)[0]):  # new neurons for each head, the same for the same head in another example
            pairing.result = tracer.labels.fresh(heads, value.shape[1])[head]
    result = pairing.result if pairing.result is not None and pairing.result.shape == value.shape else value
    labels = result.unsqueeze(1) if depth == 2 else result
    others = tuple(other for other in flow.identities if depth not in varying(other) and depth - 1 not in varying(other))
    return Flow((labels if heads > 1 else labels[:1], *others), plain=True)


def _rows(labels: Tensor, batch: int) -> Tensor:
    """Labels (1 or batch, 1, width) as (batch, width)."""
    return labels.reshape(-1, labels.shape[-1]).expand(batch, -1) if labels.numel() == labels.shape[-1] else labels.flatten(0, -2)


@handles("convolution", "_convolution")
def convolution(tracer: Tracer, call: Call) -> Shadow:
    """Weights (out, in / groups, *kernel), transposed ones (in, out / groups, *kernel)."""
    inputs, weight, bias = call.args[:3]
    transposed, groups = call.args[6], call.args[8]
    held, flow = tracer.get(weight), tracer.flow(inputs)
    if not isinstance(held, Held):
        return None

    def split(view: Tensor) -> Tensor:
        """(out, in, *kernel) -> (groups, out / groups, in, *kernel)."""
        return view.view(groups, view.shape[0] // groups, *view.shape[1:])

    grouped = held.seen(split(held.view), tuple(rider.seen(split(rider.view)) for rider in held.riders))
    own = flow.along(1, inputs.shape[1])
    axes = (1, 2) if transposed else (2, 1)
    labels = None
    if own is not None:  # channels over the groups and one axis of the weights
        over = [grouped.view.shape[axis] if axis in {0, axes[0]} else 1 for axis in range(grouped.view.dim())]
        labels = tracer.labels.collapse(own, {1}).reshape(over)
    source, target = tracer.multiply(grouped, labels, sources={0, axes[0]}, targets={0, axes[1]}, kind=EdgeType.CONVOLUTION)
    spatial = (1,) * (inputs.dim() - 2)
    if own is None:
        tracer.assign(inputs, source.reshape(1, -1, *spatial))
    result = Flow((target.reshape(1, -1, *spatial),), plain=True)
    return _per_channel(tracer, tracer.get(bias), result, tuple(call.out.shape), EdgeType.OTHER)


def _per_channel(tracer: Tracer, held: Shadow, flow: Flow, shape: tuple[int, ...], kind: EdgeType) -> Flow:
    if isinstance(held, Held):
        held = held.seen(held.view.reshape(held.view.numel(), *(1,) * (len(shape) - 2)))
    elif held is not None and (own := flow.along(1, shape[1])) is not None:
        for labels in held.identities:  # of an instance norm, repeated for each example
            tracer.labels.tie(own.flatten(), labels.flatten())
    return tracer.attach(held, flow, shape, kind)


@handles("embedding", "_embedding_bag", "_embedding_bag_forward_only")
def embedding(tracer: Tracer, call: Call) -> Shadow:
    """Rows looked up by index: words, or positions where the indices simply count."""
    held = tracer.get(call.args[0])
    if not isinstance(held, Held):
        return None
    indices = call.args[1]
    counting = indices.numel() > 1 and not indices.is_meta and torch.equal(indices.flatten(), torch.arange(indices.numel()))
    _, target, _ = tracer.use(held, {0}, {1}, EdgeType.POSITION_EMBEDDING if counting else EdgeType.WORD_EMBEDDING, lookup=True)
    return Flow((target.reshape((1,) * (tensors_of(call.out)[0].dim() - 1) + (-1,)),), plain=True)


@handles(
    "native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "cudnn_batch_norm",
    "_batch_norm_with_update", "_batch_norm_no_update", "native_group_norm", "native_layer_norm",
)  # fmt: skip
def normalise(tracer: Tracer, call: Call) -> list[Shadow]:
    """Gain and bias over dimension 1; of a layer norm, over the last dimensions."""
    per_channel = call.name != "native_layer_norm"
    inputs, weights = call.args[0], call.args[1:3] if per_channel else call.args[2:4]
    if per_channel and isinstance(held := tracer.get(inputs), Held):
        # weights that are normalised themselves stay weights, and the gains ride on them (weight standardisation)
        gains = [gain for gain in map(tracer.get, weights) if isinstance(gain, Held)]
        lead = (-1, *(1,) * (held.view.dim() - 2))
        riders = (gain.seen(gain.view.reshape(lead).expand(held.shape)) for gain in gains)
        return [held.seen(held.view, (*held.riders, *riders))]
    flow, shape = tracer.flow(inputs), tuple(inputs.shape)
    for weight, kind in zip(weights, (EdgeType.NORM, EdgeType.OTHER), strict=False):
        attach = partial(_per_channel, tracer) if per_channel else tracer.attach
        flow = attach(tracer.get(weight), flow, shape, kind)
    return [flow]


@handles("_weight_norm_interface")
def weight_norm(tracer: Tracer, call: Call) -> Shadow | list[Shadow]:
    """Direction times gain: the direction is the matrix, the gain rides on it."""
    direction, gain = (tracer.get(value) for value in call.args[:2])
    if not isinstance(direction, Held) or not isinstance(gain, Held):
        return None
    return [direction.seen(direction.view, (gain.seen(gain.view.expand(direction.shape)),))]
