"""Running a module while following its neurons.

The tracer sees every ATen operator (below autograd and below the composite functions, so a linear layer, an LSTM and an
attention layer all arrive as a few matrix products) and computes, beside each result, which neurons its elements belong to.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from protos.wiring import EdgeType
from trainer_worker.wiring.trace.labels import UNKNOWN, Flow, Held, Labels, Pairing, Shadow, Uses, squash, varying
from trainer_worker.wiring.trace.sandbox import Limits

LARGEST_LABELLED_INPUT = 2**18  # elements; features of larger inputs get labels from the first layer that reads them


@dataclass(frozen=True)
class Call:
    """One operator at work."""

    name: str
    func: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    out: Any

    def arg(self, index: int, name: str, default: Any = None) -> Any:
        return self.args[index] if index < len(self.args) else self.kwargs.get(name, default)


Handler = Callable[["Tracer", Call], Any]
HANDLERS: dict[str, Handler] = {}
Given = TypeVar("Given", bound=Handler)


def handles(*names: str) -> Callable[[Given], Given]:
    """Register a function that gives the shadow of an operator's result (a list, if it returns several tensors)."""

    def register(handler: Given) -> Given:
        HANDLERS.update(dict.fromkeys(names, handler))
        return handler

    return register


class Tracer(Limits):  # type: ignore[no-untyped-call]  # torch leaves __init_subclass__ untyped
    """Follows neurons through whatever runs inside it, within limits; several forward passes add up."""

    def __init__(self, parameters: list[Tensor]) -> None:
        super().__init__(elements=0, deadline=0.0)
        self.labels = Labels()
        self.uses = Uses([parameter.numel() for parameter in parameters])
        self.pairings: list[Pairing] = []
        self.lost: dict[str, str] = {}
        self.residuals: list[tuple[Tensor, Tensor]] = []
        self.scalars = {index for index, parameter in enumerate(parameters) if parameter.dim() == 0}
        self._held = {id(each): Held(index, torch.empty(each.shape, device="meta")) for index, each in enumerate(parameters)}
        self._shadows: Any = WeakTensorKeyDictionary()

    def begin(self, parameters: Iterable[Tensor], inputs: Iterable[Tensor], limits: Limits) -> None:
        self.elements, self.deadline = limits.elements, limits.deadline
        self._shadows = WeakTensorKeyDictionary()
        for parameter in parameters:
            if (held := self._held.get(id(parameter))) is not None:
                self._shadows[parameter] = held
        self.labels.read.zero_()
        for tensor in inputs:
            # every feature of an input is a neuron; the first dimension of several counts examples
            shape = (1, *tensor.shape[1:]) if tensor.dim() > 1 else tuple(tensor.shape)
            if tensor.is_floating_point() and 1 < torch.Size(shape).numel() <= LARGEST_LABELLED_INPUT:
                self.put(tensor, Flow((self.labels.fresh_input(*shape),)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = self.call(func, args, kwargs)
        schema = func._schema  # noqa: SLF001  (an operator says only there whether it writes into its arguments)
        name = schema.name.removeprefix("aten::")
        in_place = schema.is_mutable and name.endswith("_")
        call = Call(name.rstrip("_") if in_place else name, func, args, kwargs, out)
        try:
            shadows = HANDLERS.get(call.name, Tracer.carried)(self, call)
        except Exception as error:  # noqa: BLE001  (an operator used in a way nobody foresaw loses its neurons, not the whole trace)
            self.lost[call.name] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            shadows = None
        outputs = tensors_of(out)
        for tensor, shadow in zip(outputs, shadows if isinstance(shadows, list) else [shadows] * len(outputs), strict=False):
            self.put(tensor, shadow)
            if in_place:
                self._write_through(tensor, shadow)
        return out

    def get(self, value: Any) -> Shadow:
        return self._shadows.get(value) if isinstance(value, Tensor) else None

    def flow(self, value: Any) -> Flow:
        """The activation's shadow; of weights used as one (class tokens, prompts) neurons along the last dimension, and rows."""
        shadow = self.get(value)
        if isinstance(shadow, Held):
            last = {max(shadow.moving)} if shadow.moving else set()
            kind = EdgeType.WORD_EMBEDDING if last else EdgeType.OTHER
            source, target, _ = self.use(shadow, shadow.moving - last, last, kind)
            shadow = Flow(tuple(end for end in (target, source) if varying(end)), learnt=True)
            self.put(value, shadow)
        return shadow or Flow()

    def use(
        self, held: Held, source: Tensor | set[int], target: Tensor | set[int], kind: EdgeType, *, lookup: bool = False
    ) -> tuple[Tensor, Tensor, bool]:
        """The labels from and to which weights work, and whether they are looked up: as before, else those given, or fresh ones."""
        if (found := self.uses.find(held)) is not None:
            return self.labels.settle(found.source), self.labels.settle(found.target), found.lookup
        first, last = (
            each
            if isinstance(each, Tensor)
            else self.labels.fresh(*(size if dim in each else 1 for dim, size in enumerate(held.shape)))
            for each in (source, target)
        )
        self.uses.add(held, first, last, kind, lookup=lookup)
        return first, last, lookup

    def multiply(
        self, held: Held, inputs: Tensor | None, *, sources: set[int], targets: set[int], kind: EdgeType
    ) -> tuple[Tensor, Tensor]:
        """Contract weights over the dimensions `sources` with an activation (None: it has no labels); `targets` are those of the
        result, of the sources too where matrices are stacked. Returns the labels the weights start from and those they end in.
        """
        source, target, lookup = self.use(held, sources if inputs is None else inputs, targets, kind)
        own = targets - sources
        if not (varying(target) & own) and varying(source) & own:  # read the other way now (a tied decoder)
            source, target = target, source
        if inputs is not None and lookup:
            source = inputs
        elif inputs is not None:
            self.labels.tie(inputs, source)
        self.labels.consume(source)
        for rider in held.riders:  # a gain acts on the neurons of the dimension it has (weight normalisation)
            ends = next((ends for ends in (target, source) if varying(ends) and varying(ends) <= rider.moving), target)
            self.use(rider, rider.moving - varying(ends), ends, EdgeType.NORM)
        return source, target

    def attach(self, held: Shadow, flow: Flow, shape: tuple[int, ...], kind: EdgeType) -> Flow:
        """Add a bias, gain or position embedding (else nothing) to an activation of `shape`; gives it the neurons it lacks."""
        if not isinstance(held, Held) or held.parameter in self.scalars:
            return flow
        for rider in held.riders:
            flow = self.attach(rider, flow, shape, kind)
        held = held.seen(held.view.expand(shape))
        moving = held.moving
        if not moving:
            return self._attach_scalar(held, flow, kind)
        # the identity the weights act on: one of their own dimensions, the last by preference
        touching = [labels for labels in flow.identities if varying(labels) & moving]
        fitting = [labels for labels in touching if varying(labels) <= moving]
        own = max(fitting or touching, key=lambda labels: max(varying(labels) & moving), default=None)
        if own is not None and not varying(own) <= moving and self.labels.of_input(own):
            rest = tuple(labels for labels in flow.identities if labels is not own)
            own = self.labels.collapse(own, moving)
            flow = Flow((own, *rest), plain=flow.plain, pairing=flow.pairing)
        if own is None or not varying(own) <= moving:
            return self._attach_apart(held, flow, own, kind)
        others = moving - varying(own)
        rows = next((labels for labels in flow.identities if others and varying(labels) == others), others)
        kind = EdgeType.POSITION_EMBEDDING if others and kind == EdgeType.OTHER else kind
        source, target, _ = self.use(held, rows, own, kind)
        self.labels.tie(own, target)
        if rows is others == {len(shape) - 1} and kind == EdgeType.NORM:  # spread over it: a number's embedding, a state space
            flow = replace(flow, identities=(*flow.identities, source))
        return flow

    def _attach_apart(self, held: Held, flow: Flow, own: Tensor | None, kind: EdgeType) -> Flow:
        """The weights have neurons of their own: new to the activation, or shared by several of its (a norm within heads)."""
        targets = {max(held.moving)} if own is None else varying(own) & held.moving
        rest = held.moving - targets
        _, target, _ = self.use(held, rest, targets, EdgeType.POSITION_EMBEDDING if rest and kind == EdgeType.OTHER else kind)
        if own is None:
            return Flow((*flow.identities, target), plain=flow.plain, pairing=flow.pairing)
        self.residuals.append(torch.broadcast_tensors(target, own))  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return flow

    def _attach_scalar(self, held: Held, flow: Flow, kind: EdgeType) -> Flow:
        """A single weight acts on all neurons alike: on one neuron that is tied to each of them."""
        if self.uses.find(held) is None:
            ones = [1] * held.view.dim()
            single = next((labels for labels in flow.identities if labels.numel() == 1), None)
            target = self.labels.fresh(*ones) if single is None else single
            self.uses.add(held, self.labels.fresh(*ones), target, kind)
            if single is None:
                self.residuals.extend((target.expand(labels.shape), labels) for labels in flow.identities[:1])
        return flow

    def put(self, tensor: Tensor, shadow: Shadow) -> None:
        if shadow is None:
            self._shadows.pop(tensor, None)
        else:
            self._shadows[tensor] = shadow

    def assign(self, tensor: Tensor, labels: Tensor) -> None:
        """An activation without neurons along some dimension gets them from the layer that first reads it."""
        flow = self.flow(tensor)
        self.put(tensor, replace(flow, identities=(*flow.identities, labels), learnt=False))

    def carried(self, call: Call) -> list[Shadow]:
        """For operators nobody handles: neurons stay on dimensions that keep their place and size (pooling, padding, ...)."""
        inputs, outputs = tensors_of((call.args, call.kwargs)), tensors_of(call.out)
        only = self.get(inputs[0]) if len(inputs) == 1 else None
        if isinstance(only, Held):
            return [only if only.shape == tuple(out.shape) else None for out in outputs]
        flows = [(tensor, shadow) for tensor in inputs if isinstance(shadow := self.get(tensor), Flow)]
        kept = ((_kept(tensor, flow, out) for tensor, flow in flows if tensor.dim() == out.dim()) for out in outputs)
        return [next(each, None) for each in kept]

    def _write_through(self, tensor: Tensor, shadow: Shadow) -> None:
        """Writing into a view writes into the tensor it is a view of."""
        base = tensor._base  # noqa: SLF001  (torch's only name for it)
        if base is None or not isinstance(shadow, Flow) or isinstance(self.get(base), Held) or not base.is_contiguous():
            return
        before = self.flow(base).identities
        after = []
        for index, labels in enumerate(shadow.identities):
            whole = before[index].expand(base.shape).clone() if index < len(before) else torch.full(base.shape, UNKNOWN)
            part = whole.as_strided(tensor.size(), tensor.stride(), tensor.storage_offset() - base.storage_offset())
            part.copy_(labels.expand(tensor.shape))
            after.append(squash(whole))
        self.put(base, Flow((*after, *before[len(after) :])))


def tensors_of(out: Any) -> list[Tensor]:
    return [out] if isinstance(out, Tensor) else [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]


def _kept(tensor: Tensor, flow: Flow, out: Tensor) -> Flow:
    same = {dim for dim in range(out.dim()) if tensor.size(dim) == out.size(dim)}
    kept = tuple(labels for labels in flow.identities if varying(labels) <= same)
    return Flow(kept, plain=flow.plain, pairing=flow.pairing if tensor.shape == out.shape else None)
