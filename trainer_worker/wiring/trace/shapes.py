"""Operators that rearrange elements: applied to the labels as to the tensor."""

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map_only

from trainer_worker.wiring.trace.labels import UNKNOWN, Flow, Held, Labels, Shadow, squash, varying
from trainer_worker.wiring.trace.tracer import Call, Tracer, handles, tensors_of

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
    count = len(tensors_of(call.out))
    return [replace(shadow, identities=tuple(identity[index] for identity in parts)) for index in range(count)]


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
