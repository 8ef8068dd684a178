"""Operators that combine tensors element by element, and reductions."""

import torch
from torch import Tensor

from protos.wiring import EdgeType
from trainer_worker.wiring.trace.labels import Flow, Held, Shadow, varying
from trainer_worker.wiring.trace.tracer import Call, Tracer, handles, tensors_of

SUMS = ("add", "sub", "rsub", "addcmul", "addcdiv")


@handles(
    *SUMS, "mul", "div", "where", "maximum", "minimum", "lerp", "pow", "atan2", "_prelu_kernel", "fmod", "remainder",
    "masked_fill", "hypot", "fmax", "fmin",
)  # fmt: skip
def combine(tracer: Tracer, call: Call) -> Shadow:
    """A sum: a bias, a residual connection, two layers that end in the same neurons. Or a product: gains, activations that pair."""
    kind = EdgeType.OTHER if call.name in SUMS else EdgeType.NORM
    operands = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    known = [(value, shadow) for value in operands if (shadow := tracer.get(value)) is not None]
    held = [shadow for _, shadow in known if isinstance(shadow, Held)]
    # of a norm of weights, say, which is but a number, nothing is known
    flows = [(value, flow) for value, flow in known if isinstance(flow, Flow) and (flow.identities or flow.pairing)]
    shape = tuple(call.out.shape)
    if held and not flows:
        carrier = max(held, key=lambda weights: weights.view.numel())
        if carrier.shape == shape:  # weights with further weights multiplied into them
            riders = (other.seen(other.view.expand(shape)) for other in held if other is not carrier)
            return carrier.seen(carrier.view, (*carrier.riders, *riders))
    if not held and not flows:
        return None
    aligned = [  # as broadcasting does
        Flow(tuple(labels[(None,) * (len(shape) - value.dim())] for labels in flow.identities), flow.plain, flow.pairing)
        for value, flow in flows
    ]
    result, *others = aligned or [Flow()]
    for flow in others:
        identities, plain = list(result.identities), result.plain and flow.plain
        for labels in flow.identities:
            _place(tracer, identities, labels, kind, plain=plain)
        result = Flow(tuple(identities), pairing=result.pairing or flow.pairing)
    for weights in held:
        result = tracer.attach(weights, result, shape, kind)
    return result


def _place(tracer: Tracer, identities: list[Tensor], labels: Tensor, kind: EdgeType, *, plain: bool) -> None:
    """Join the labels with the identity over the same dimensions; where they only overlap, the finer one stays."""
    for index, mine in enumerate(identities):
        if varying(mine) == varying(labels):
            identities[index] = _joined(tracer, mine, labels, kind, plain=plain)
            return
    for index, mine in enumerate(identities):
        common = varying(mine) & varying(labels)
        if common:
            # the neurons of an input or a concatenation depend on no more dimensions than those of what it is combined with;
            # heads do: the finer neurons of one layer's output, split over two dimensions, stay apart
            known = tracer.labels
            ours, theirs = (
                known.collapse(end, common) if known.of_input(end) or known.origins(end) > 1 else end for end in (mine, labels)
            )
            if varying(ours) == varying(theirs):
                identities[index] = _joined(tracer, ours, theirs, kind, plain=plain)
            elif varying(ours) < varying(theirs):
                identities[index] = theirs
            return
    identities.append(labels)


def _joined(tracer: Tracer, left: Tensor, right: Tensor, kind: EdgeType, *, plain: bool) -> Tensor:
    """Two identities over the same dimensions. In a product their neurons pair off. In a sum, what has been read from already is
    skipped over; what has not ends in the same neurons. Two parts of one layer's output added up (rotary embeddings; both `plain`)
    mix neurons, and stay apart.
    """
    if kind == EdgeType.OTHER and (bool(torch.isin(left, right).any()) or (plain and tracer.labels.origins(left, right) == 1)):
        return left
    read = tracer.labels.consumed(left), tracer.labels.consumed(right)
    if kind != EdgeType.OTHER or read == (False, False):
        tracer.labels.tie(left, right)
        return left
    if read == (True, True):
        total = tracer.labels.fresh(*left.shape)
        tracer.residuals += [(left, total), (right, total)]
        return total
    skipped, branch = (left, right) if read[0] else (right, left)
    tracer.residuals.append((skipped, branch))
    return branch


@handles("_softmax", "_safe_softmax", "_log_softmax", "softmax", "_masked_softmax")
def softmax(tracer: Tracer, call: Call) -> Shadow:
    """Normalised products of activations are attention."""
    shadow = tracer.get(call.args[0])
    if isinstance(shadow, Flow) and shadow.pairing is not None:
        shadow.pairing.normalised = True
    return shadow


@handles(
    "sum", "mean", "amax", "amin", "max", "min", "var", "std", "var_mean", "std_mean", "logsumexp", "linalg_vector_norm",
    "norm", "prod", "median", "any", "all", "argmax", "argmin", "aminmax",
)  # fmt: skip
def reduce(tracer: Tracer, call: Call) -> Shadow:
    """Sums over a dimension tie the neurons along it; with `keepdim` (normalisation written out) they only drop them."""
    tensor = call.args[0]
    shadow = tracer.get(tensor)
    if not isinstance(shadow, Flow):
        return None
    if len(call.args) > 1 and isinstance(call.args[1], Tensor):
        return combine(tracer, call)
    out = tensors_of(call.out)[0]
    dims = call.arg(2 if call.name == "linalg_vector_norm" else 1, "dim")
    every = dims is None or isinstance(dims, bool) or dims == []
    chosen = range(tensor.dim()) if every else [dims] if isinstance(dims, int) else dims
    summed = {dim % tensor.dim() for dim in chosen}
    if out.dim() == tensor.dim():
        return Flow(tuple(labels for labels in shadow.identities if not varying(labels) & summed))
    rest = [dim for dim in range(tensor.dim()) if dim not in summed]
    kept = []
    for labels in shadow.identities:
        own = varying(labels) - summed
        if own or labels.numel() == 1:
            if len(own) > 1 and varying(labels) & summed and not tracer.labels.of_input(labels):
                own = {max(own)}  # rows that went through different experts
            tied = tracer.labels.collapse(labels, own if varying(labels) & summed else set(rest))
            kept.append(tied.reshape([tied.shape[dim] for dim in rest]))
    return Flow(tuple(kept))
