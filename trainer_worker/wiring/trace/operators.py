"""Operators that rearrange elements (applied to the labels as to the tensor), combine them, or reduce them."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from protos.wiring import EdgeType
from trainer_worker.wiring.trace.labels import UNKNOWN, Flow, Held, Labels, Shadow, squash, varying
from trainer_worker.wiring.trace.tracer import Call, Tracer, handles, tensors_of

SUMS = ("add", "sub", "rsub", "addcmul", "addcdiv")
RESHAPES = {"view", "_unsafe_view", "_reshape_alias"}


@handles(
    *RESHAPES, "permute", "transpose", "t", "select", "slice", "unsqueeze", "squeeze", "expand", "split",
    "unsafe_split", "split_with_sizes", "unsafe_split_with_sizes", "unbind", "unfold", "flip", "roll", "repeat", "index",
    "index_select", "gather", "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "im2col", "diagonal", "tril", "triu",
    "rot90", "masked_select",
)  # fmt: skip
def move(tracer: Tracer, call: Call) -> Any:
    tensor = call.args[0]
    shadow = tracer.get(tensor)
    if shadow is None:
        return None
    if isinstance(shadow, Held):
        moved = _move_weights(call, shadow)
        if moved is not None:
            return moved
        shadow = tracer.flow(tensor)
    parts = [[squash(part) for part in tensors_of(_apply(call, labels.expand(tensor.shape)))] for labels in shadow.identities]
    return [replace(shadow, identities=tuple(identity[index] for identity in parts)) for index in range(len(tensors_of(call.out)))]


def _apply(call: Call, labels: Tensor) -> Any:
    if call.name in RESHAPES:
        return labels.reshape(call.out.shape)
    if call.name == "im2col":
        return call.func(labels.double(), *call.args[1:], **call.kwargs).round().long()
    rest = tree_map_only(Tensor, Tensor.cpu, call.args[1:])  # fails for indices on the meta device, which say nothing
    return call.func(labels, *rest, **call.kwargs)


def _move_weights(call: Call, held: Held) -> list[Shadow] | None:
    """A view of weights is still weights; None, if the elements cannot be told by strides any more."""
    if call.name in {"index", "index_select", "gather"}:
        return None
    views = []
    try:
        for each in (held, *held.riders):
            reshaped = call.name in RESHAPES
            out = each.view.view(call.out.shape) if reshaped else call.func(each.view, *call.args[1:], **call.kwargs)
            views.append([each.seen(part) for part in tensors_of(out)])
    except (RuntimeError, NotImplementedError):
        return None
    storage = held.view.untyped_storage()._cdata  # noqa: SLF001  (on the meta device storages have no other identity)
    if any(part.view.untyped_storage()._cdata != storage for part in views[0]):  # noqa: SLF001
        return None
    return [own.seen(own.view, tuple(riders)) for own, *riders in zip(*views, strict=True)]


@handles("clone", "_to_copy", "alias", "detach", "lift_fresh", "lift_fresh_copy", "_conj", "lift", "_lazy_clone")
def same(tracer: Tracer, call: Call) -> Shadow:
    """A copy in another place, layout or precision."""
    return tracer.get(call.args[0])


@handles(
    "zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like", "new_zeros",
    "new_ones", "new_empty", "new_full", "new_empty_strided", "zero", "fill", "bernoulli", "normal", "uniform", "nonzero",
    "_local_scalar_dense", "multinomial", "exponential", "random",
)  # fmt: skip
def made(tracer: Tracer, call: Call) -> Shadow:  # noqa: ARG001  (all handlers are called alike)
    """New values in the shape of others have nobody's neurons."""
    return None


@handles("copy")
def copy(tracer: Tracer, call: Call) -> Shadow:
    target, origin = call.args[:2]
    shadow = tracer.flow(origin)
    lead = target.dim() - origin.dim()
    return Flow(tuple(labels.reshape((1,) * lead + tuple(labels.shape)) for labels in shadow.identities))


@handles("cat", "stack")
def join(tracer: Tracer, call: Call) -> Shadow:
    """Side by side along a dimension; a class token's features are those of the tokens it stands beside."""
    tensors = [tensor for tensor in call.args[0] if tensor.numel() > 0]
    dim = call.arg(1, "dim", 0) % call.out.dim()
    shapes = [list(tensor.shape) for tensor in tensors]
    flows = [tracer.flow(tensor).identities for tensor in tensors]
    weights = [tracer.flow(tensor).learnt for tensor in tensors]
    if call.name == "stack":
        shapes = [[*shape[:dim], 1, *shape[dim:]] for shape in shapes]
        flows = [tuple(labels.unsqueeze(dim) for labels in flow) for flow in flows]
    along = [next((labels for labels in flow if dim in varying(labels)), None) for flow in flows]
    if any(weights) and not all(weights):
        along = [None if held else labels for held, labels in zip(weights, along, strict=True)]
    joined = [] if all(labels is None for labels in along) else [_side_by_side(tracer.labels, along, shapes, dim)]
    across = [[labels for labels in flow if dim not in varying(labels) and varying(labels)] for flow in flows]
    for labels in max(across, key=len, default=[]):
        twins = [twin for other in across for twin in other if varying(twin) == varying(labels)]
        if any(weights):
            for twin in twins:
                tracer.labels.tie(labels, twin)
            joined.append(labels)
        elif len(twins) == len(tensors):
            parts: list[Tensor | None] = [*twins]
            joined.append(squash(_side_by_side(tracer.labels, parts, shapes, dim)))
    return Flow(tuple(joined))


def _side_by_side(labels: Labels, parts: list[Tensor | None], shapes: list[list[int]], dim: int) -> Tensor:
    """Labels of a concatenation; parts without any get fresh ones."""
    known = [part for part in parts if part is not None]
    if any(varying(part) == {dim} for part in known):
        parts = [None if part is None else labels.collapse(part, {dim}) for part in parts]
    keep = {dim}.union(*(varying(part) for part in parts if part is not None))
    pieces = []
    for part, shape in zip(parts, shapes, strict=True):
        size = [length if axis in keep else 1 for axis, length in enumerate(shape)]
        ones = [length if axis == dim else 1 for axis, length in enumerate(shape)]
        pieces.append((labels.fresh(*ones) if part is None else part).expand(size))
    return torch.cat(pieces, dim)


@handles("constant_pad_nd")
def pad(tracer: Tracer, call: Call) -> Shadow:
    """Padding keeps neurons, and adds new ones where it widens the dimension that tells them apart."""
    tensor, width = call.args[:2]
    flow = tracer.flow(tensor)
    padded = []
    for labels in flow.identities:
        around = [amount if labels.shape[-1 - index // 2] > 1 else 0 for index, amount in enumerate(width)]
        padded.append(tracer.labels.settle(torch.nn.functional.pad(labels, around, value=UNKNOWN)))
    return Flow(tuple(padded), plain=flow.plain)


@handles(
    "slice_scatter", "select_scatter", "index_put", "_unsafe_index_put", "index_copy", "index_add", "scatter",
    "scatter_add", "scatter_reduce", "index_fill", "masked_scatter", "index_reduce",
)  # fmt: skip
def write(tracer: Tracer, call: Call) -> Shadow:
    """Parts written into a tensor: neurons along the last dimension are common to both."""
    target = call.args[0]
    origins = [value for value in call.args[1:] if isinstance(value, Tensor) and tracer.get(value) is not None]
    last = []
    for tensor in (target, *origins):
        labels = tracer.flow(tensor).along(tensor.dim() - 1, tensor.shape[-1]) if tensor.dim() else None
        if labels is not None:
            last.append(tracer.labels.collapse(labels, {tensor.dim() - 1}).flatten())
    for other in last[1:]:
        tracer.labels.tie(last[0], other)
    return Flow((last[0].reshape((1,) * (target.dim() - 1) + (-1,)),)) if last and len(last[0]) == target.shape[-1] else None


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
