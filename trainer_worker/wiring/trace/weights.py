"""Weights at work: as a matrix that is multiplied by, as a vector added or multiplied, as a tensor in its own right."""

import torch
from torch import Tensor

from protos.wiring import EdgeType
from trainer_worker.wiring.trace.labels import Flow, Held, varying
from trainer_worker.wiring.trace.tracer import Tracer


def multiply(
    tracer: Tracer, held: Held, inputs: Tensor | None, *, sources: set[int], targets: set[int], kind: EdgeType
) -> tuple[Tensor, Tensor]:
    """Weights contracted with an activation over some of their dimensions.

    Labels of the activation are broadcastable to the weights; None where it has none. `sources` are the dimensions contracted,
    `targets` those of the result, and of the sources too where matrices are stacked. Returns the labels the weights start from and
    those they end in.
    """
    found = tracer.uses.find(held)
    if found is None:
        source = inputs if inputs is not None else tracer.labels.fresh_over(held.shape, sources)
        target = tracer.labels.fresh_over(held.shape, targets)
        tracer.uses.add(held, source, target, kind)
    else:
        source, target = _reuse(tracer, found.source, found.target, targets - sources, lookup=found.lookup, inputs=inputs)
    tracer.labels.consume(source)
    for rider in held.riders:
        _ride(tracer, rider, target, source)
    return source, target


def _reuse(
    tracer: Tracer, source: Tensor, target: Tensor, targets: set[int], *, lookup: bool, inputs: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Weights used again; turned round, if they are now read the other way (a tied decoder)."""
    source, target = tracer.labels.settle(source), tracer.labels.settle(target)
    if not (varying(target) & targets) and varying(source) & targets:
        source, target = target, source
    if inputs is not None and not lookup:
        tracer.labels.tie(inputs, source)
    return (inputs if inputs is not None and lookup else source), target


def _ride(tracer: Tracer, rider: Held, target: Tensor, source: Tensor) -> None:
    """A gain multiplied into weights acts on the neurons of the dimension it has (weight normalisation)."""
    fitting = [ends for ends in (target, source) if varying(ends) and varying(ends) <= rider.moving]
    ends = fitting[0] if fitting else target
    if tracer.uses.find(rider) is None:
        rest = rider.moving - varying(ends)
        tracer.uses.add(rider, tracer.labels.fresh_over(rider.shape, rest), ends, EdgeType.NORM)


def attach(tracer: Tracer, held: Held, flow: Flow, shape: tuple[int, ...], kind: EdgeType) -> Flow:
    """A bias, gain or position embedding, broadcast against an activation of `shape`.

    Returns:
        the result's shadow: the activation's, with neurons where only the weights tell them apart.
    """
    if held.parameter in tracer.scalars:
        return flow
    held = held.seen(held.view.expand(shape))
    moving, found = held.moving, tracer.uses.find(held)
    if not moving:
        return _attach_scalar(tracer, held, flow, kind)
    own = _owner(flow, moving)
    if own is not None and not varying(own) <= moving and tracer.labels.of_input(own):
        rest = tuple(labels for labels in flow.identities if labels is not own)
        own = tracer.labels.collapse(own, moving)
        flow = Flow((own, *rest), plain=flow.plain, pairing=flow.pairing)
    if own is None or not varying(own) <= moving:
        return _attach_apart(tracer, held, flow, own, kind)
    if found is not None:
        tracer.labels.tie(own, tracer.labels.settle(found.target))
        return flow
    others = moving - varying(own)
    rows = next((labels for labels in flow.identities if others and varying(labels) == others), None)
    source = tracer.labels.fresh_over(shape, others) if rows is None else rows
    tracer.uses.add(held, source, own, EdgeType.POSITION_EMBEDDING if others and kind == EdgeType.OTHER else kind)
    return flow


def _owner(flow: Flow, moving: set[int]) -> Tensor | None:
    """The identity the weights act on: one of their own dimensions, the last by preference."""
    touching = [labels for labels in flow.identities if varying(labels) & moving]
    fitting = [labels for labels in touching if varying(labels) <= moving]
    return max(fitting or touching, key=lambda labels: max(varying(labels) & moving), default=None)


def _attach_apart(tracer: Tracer, held: Held, flow: Flow, own: Tensor | None, kind: EdgeType) -> Flow:
    """The weights have neurons of their own: new to the activation, or shared by several of its neurons (a norm within heads)."""
    targets = {max(held.moving)} if own is None else varying(own) & held.moving
    found = tracer.uses.find(held)
    if found is None:
        target = tracer.labels.fresh_over(held.shape, targets)
        rest = held.moving - targets
        kind = EdgeType.POSITION_EMBEDDING if rest and kind == EdgeType.OTHER else kind
        tracer.uses.add(held, tracer.labels.fresh_over(held.shape, rest), target, kind)
    else:
        target = tracer.labels.settle(found.target)
    if own is None:
        return Flow((*flow.identities, target), plain=flow.plain, pairing=flow.pairing)
    tracer.residuals.append(torch.broadcast_tensors(target, own))  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return flow


def _attach_scalar(tracer: Tracer, held: Held, flow: Flow, kind: EdgeType) -> Flow:
    """A single weight acts on all neurons alike: on one neuron that is tied to each of them."""
    if tracer.uses.find(held) is None:
        ones = [1] * held.view.dim()
        single = next((labels for labels in flow.identities if labels.numel() == 1), None)
        target = tracer.labels.fresh(*ones) if single is None else single
        tracer.uses.add(held, tracer.labels.fresh(*ones), target, kind)
        if single is None:
            tracer.residuals.extend((target.expand(labels.shape), labels) for labels in flow.identities[:1])
    return flow
