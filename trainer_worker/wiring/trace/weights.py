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
    source, target, lookup = tracer.use(held, sources if inputs is None else inputs, targets, kind)
    own = targets - sources
    if not (varying(target) & own) and varying(source) & own:  # read the other way now (a tied decoder)
        source, target = target, source
    if inputs is not None and lookup:
        source = inputs
    elif inputs is not None:
        tracer.labels.tie(inputs, source)
    tracer.labels.consume(source)
    for rider in held.riders:
        _ride(tracer, rider, target, source)
    return source, target


def _ride(tracer: Tracer, rider: Held, target: Tensor, source: Tensor) -> None:
    """A gain multiplied into weights acts on the neurons of the dimension it has (weight normalisation)."""
    ends = next((ends for ends in (target, source) if varying(ends) and varying(ends) <= rider.moving), target)
    tracer.use(rider, rider.moving - varying(ends), ends, EdgeType.NORM)


def attach(tracer: Tracer, held: Held, flow: Flow, shape: tuple[int, ...], kind: EdgeType) -> Flow:
    """A bias, gain or position embedding, broadcast against an activation of `shape`.

    Returns:
        the result's shadow: the activation's, with neurons where only the weights tell them apart.
    """
    if held.parameter in tracer.scalars:
        return flow
    held = held.seen(held.view.expand(shape))
    moving = held.moving
    if not moving:
        return _attach_scalar(tracer, held, flow, kind)
    own = _owner(flow, moving)
    if own is not None and not varying(own) <= moving and tracer.labels.of_input(own):
        rest = tuple(labels for labels in flow.identities if labels is not own)
        own = tracer.labels.collapse(own, moving)
        flow = Flow((own, *rest), plain=flow.plain, pairing=flow.pairing)
    if own is None or not varying(own) <= moving:
        return _attach_apart(tracer, held, flow, own, kind)
    others = moving - varying(own)
    rows = next((labels for labels in flow.identities if others and varying(labels) == others), others)
    kind = EdgeType.POSITION_EMBEDDING if others and kind == EdgeType.OTHER else kind
    tracer.labels.tie(own, tracer.use(held, rows, own, kind)[1])
    return flow


def _owner(flow: Flow, moving: set[int]) -> Tensor | None:
    """The identity the weights act on: one of their own dimensions, the last by preference."""
    touching = [labels for labels in flow.identities if varying(labels) & moving]
    fitting = [labels for labels in touching if varying(labels) <= moving]
    return max(fitting or touching, key=lambda labels: max(varying(labels) & moving), default=None)


def _attach_apart(tracer: Tracer, held: Held, flow: Flow, own: Tensor | None, kind: EdgeType) -> Flow:
    """The weights have neurons of their own: new to the activation, or shared by several of its neurons (a norm within heads)."""
    targets = {max(held.moving)} if own is None else varying(own) & held.moving
    rest = held.moving - targets
    _, target, _ = tracer.use(held, rest, targets, EdgeType.POSITION_EMBEDDING if rest and kind == EdgeType.OTHER else kind)
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
