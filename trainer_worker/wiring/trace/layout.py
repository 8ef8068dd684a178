"""From what was traced to blocks: labels become numbered neurons, uses become rectangles, attention gets its heads."""

import math
from collections import defaultdict
from dataclasses import replace
from itertools import islice

import torch
from torch import Tensor

from protos.wiring import Block, EdgeType, Parameter, Wiring
from trainer_worker.wiring.blocks import MAX_PIECES, Weights, edges, ranges, split
from trainer_worker.wiring.trace.labels import UNKNOWN, Pairing, Use, distinct
from trainer_worker.wiring.trace.tracer import Tracer

MAX_STRETCHES = 2**12  # of unseen weights; beyond, they stay out of the wiring, and keep their last value in a forecast
_MARK = 64  # base of the numbers `Layout._codes` makes


class Layout:
    """Numbers the neurons and draws the blocks of what was traced."""

    def __init__(self, tracer: Tracer, parameters: tuple[Parameter, ...]) -> None:
        self._tracer, self._parameters = tracer, parameters
        self._blocks: list[Block] = []
        self._neurons = 0
        _settle(tracer)
        self._kind = torch.zeros(tracer.labels.count, dtype=torch.int64)  # by label, type of the edges that end there, 0 for none
        self._turned = torch.zeros_like(self._kind)  # whether those run backwards
        self._heads: list[list[Tensor]] = []  # by attention layer, labels (heads, width) of queries and, if not shared, values
        self._mark()
        self._component = tracer.labels.resolve()
        self._number = torch.full((len(self._component),), UNKNOWN)

    def _mark(self) -> None:
        """Tie what attention ties: queries and keys that nothing else reads. A recurrent state that is attended to is no key."""
        tracer = self._tracer
        component = tracer.labels.resolve()  # before attention ties any
        kinds = {EdgeType.LINEAR, EdgeType.CONVOLUTION}
        sources = [component[use.source].flatten() for uses in tracer.uses.of for use in uses if use.kind in kinds]
        read = {neuron for source in sources for neuron in source.tolist()}
        for pairing in tracer.pairings:
            ends = torch.cat([component[pairing.query].flatten(), component[pairing.key].flatten()]).tolist()
            value = pairing.value if pairing.normalised and read.isdisjoint(ends) else None
            if value is not None and set(ends).isdisjoint(component[value].flatten().tolist()):
                self._mark_attention(pairing, value)
            else:
                tracer.labels.tie(pairing.query, pairing.key)

    def _mark_attention(self, pairing: Pairing, value: Tensor) -> None:
        result = pairing.result
        assert result is not None
        for labels, kind in ((pairing.query, EdgeType.QUERY), (pairing.key, EdgeType.KEY), (value, EdgeType.VALUE)):
            self._kind[labels] = int(kind)
        if result is not value:
            self._tracer.residuals.append((value, result))
        first, _ = distinct(pairing.query)
        if len(distinct(pairing.key)[0]) == len(first):
            self._tracer.labels.tie(pairing.query, pairing.key)
            self._turned[pairing.key] = 1
        else:
            self._tracer.residuals.append((pairing.key, pairing.query))
        rows = result[first]
        self._heads.append([pairing.query[first], rows] if len(distinct(rows)[0]) == len(first) else [pairing.query[first]])

    def draw(self, chosen: set[str]) -> tuple[Wiring, dict[str, float]]:
        """The wiring of the chosen parameters, with all structure; and for each the share of its weights that could be placed."""
        placed, alone, uses = {}, [], self._tracer.uses
        for index, parameter in enumerate(self._parameters):
            if parameter.name not in chosen:
                continue
            drawn = sum(self._draw_use(index, use) for use in sorted(uses.of[index], key=lambda use: use.offset))
            placed[parameter.name] = drawn / max(1, parameter.size)
            if not drawn and parameter.shape and parameter.size:
                alone.append(index)
            elif drawn and not uses.complete(index):
                self._draw_rest(index, uses.seen(index))
        self._draw_structure()
        self._draw_alone(alone)
        return Wiring(self._parameters, max(1, self._neurons), tuple(self._blocks)), placed

    def _fresh(self, count: int) -> range:
        self._neurons += count
        return range(self._neurons - count, self._neurons)

    def _draw(self, block: Block) -> None:
        self._blocks += split(block)

    def _draw_vector(self, parameter: int, targets: range, kind: EdgeType, *, offset: int = 0) -> None:
        """Draw a bias or gain: one source neuron of its own, an edge to each target."""
        self._draw(replace(edges(kind, self._fresh(1), targets, parameter=parameter), offset=offset, target_stride=1))

    def _draw_alone(self, parameters: list[int]) -> None:
        """Draw parameters by their shape alone: a matrix joins new inputs to new outputs; a module's vectors share its outputs."""
        outputs: dict[str, range] = {}
        for index in parameters:
            parameter = self._parameters[index]
            module, _, key = parameter.name.rpartition(".")
            if len(parameter.shape) > 1:
                rows, columns, *kernel = parameter.shape
                slots = math.prod(kernel)
                sources, outputs[module] = self._fresh(columns), self._fresh(rows)
                block = edges(EdgeType.CONVOLUTION if kernel else EdgeType.LINEAR, sources, outputs[module], parameter=index)
                self._draw(replace(block, source_stride=slots, target_stride=columns * slots, slots=slots, slot_stride=1))
                continue
            if len(outputs.get(module, ())) != parameter.size:
                outputs[module] = self._fresh(parameter.size)
            self._draw_vector(index, outputs[module], EdgeType.NORM if key == "weight" else EdgeType.OTHER)

    def _draw_rest(self, index: int, seen: Tensor) -> None:
        """Draw the weights of a parameter that were not seen at work when others were: each stretch of them as a vector."""
        ends = torch.nn.functional.pad(~seen, (1, 1)).to(torch.int8).diff().nonzero().view(-1, 2)  # of stretches: first, one past
        for start, stop in ends.tolist() if len(ends) <= MAX_STRETCHES else ():
            self._draw_vector(index, self._fresh(stop - start), EdgeType.OTHER, offset=start)

    def _draw_use(self, index: int, use: Use) -> int:
        """Draw the use's blocks; returns how many weights they hold, 0 if they cannot be said in blocks."""
        neurons = self._numbered(use.source), self._numbered(use.target)
        weights = Weights(use.sizes, use.strides, use.offset, *neurons, self._codes(self._parameters[index], use))
        blocks = list(islice(weights.blocks(index), MAX_PIECES + 1))
        if len(blocks) > MAX_PIECES:
            return 0
        single: dict[int, int] = {}
        for block in blocks:
            mark, (kind, turned) = block.edge_type // _MARK, divmod(block.edge_type % _MARK, 2)
            if use.source.numel() == 1 and mark not in single:  # a fused bias has a source each for query, key and value
                single[mark] = self._fresh(1).start if single else block.source
            source = single.get(mark, block.source)
            drawn = replace(block, edge_type=kind, source=source)
            if turned and not block.diagonal:
                drawn = replace(drawn, source=block.target, sources=block.targets, source_stride=block.target_stride)
                drawn = replace(drawn, target=source, targets=block.sources, target_stride=block.source_stride)
            self._draw(drawn)
        return torch.Size(use.sizes).numel()

    def _codes(self, parameter: Parameter, use: Use) -> Tensor:
        """For each target: what attention takes it for, the edge's type, and whether the edge runs backwards, in one number."""
        mark, turned = self._kind[use.target], self._turned[use.target]
        kind = torch.full_like(mark, int(_kind(parameter, use)))
        if use.kind != EdgeType.LINEAR:
            return mark * _MARK + kind * 2
        return mark * _MARK + torch.where(mark > 0, mark, kind) * 2 + turned

    def _numbered(self, labels: Tensor) -> Tensor:
        """The neurons of labels, numbered as they come up."""
        components = self._component[labels]
        new = components[self._number[components] == UNKNOWN]
        if len(new):
            order = torch.tensor(list(dict.fromkeys(new.flatten().tolist())))
            start = self._fresh(len(order)).start
            self._number[order] = torch.arange(start, start + len(order))
        return self._number[components]

    def _draw_structure(self) -> None:
        lanes: dict[int, set[int]] = defaultdict(set)  # by the distance of their ends, the sources of residual connections
        for skipped, branch in self._tracer.residuals:
            ends = (self._numbered(labels).flatten().tolist() for labels in (skipped, branch))
            for source, target in zip(*ends, strict=True):
                lanes[target - source].add(source)
        for distance in sorted(lanes.keys() - {0}):
            for sources in ranges(sorted(lanes[distance])):
                targets = range(sources.start + distance, sources.stop + distance)
                self._draw(edges(EdgeType.RESIDUAL, sources, targets, diagonal=True))
        seen = set()
        for layer in self._heads:
            for row in range(len(layer[0])):
                members = tuple(tuple(self._numbered(part[row]).tolist()) for part in layer)
                if members not in seen:
                    seen.add(members)
                    node = self._fresh(1)
                    for neurons in ranges(sorted({neuron for group in members for neuron in group})):
                        self._draw(edges(EdgeType.HEAD, node, neurons))


def _kind(parameter: Parameter, use: Use) -> EdgeType:
    """Which kind of table an embedding is, only its name can say."""
    if not use.lookup:
        return use.kind
    if "pos" in parameter.name or parameter.name.endswith("wpe.weight"):
        return EdgeType.POSITION_EMBEDDING
    return EdgeType.OTHER if "type" in parameter.name else use.kind


def _settle(tracer: Tracer) -> None:
    """Give every label that is still unknown a neuron of its own."""
    settle = tracer.labels.settle
    for uses in tracer.uses.of:
        for use in uses:
            use.source, use.target = settle(use.source), settle(use.target)
    tracer.residuals = [(settle(skipped), settle(branch)) for skipped, branch in tracer.residuals]
    for pairing in tracer.pairings:
        same = pairing.result is pairing.value
        pairing.query, pairing.key = settle(pairing.query), settle(pairing.key)
        pairing.value = None if pairing.value is None else settle(pairing.value)
        pairing.result = pairing.value if same or pairing.result is None else settle(pairing.result)
