"""A wiring as a picture: its modules in layers, repeats folded, and the matrix of which neurons are joined. Plain SVG."""

import html
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Final

from protos.wiring import STRUCTURE, Block, EdgeType, Wiring

MAX_BLOCKS: Final = 50_000  # more are not drawn where the wiring may be anyone's
MAX_BOXES: Final = 120
MAX_RECTANGLES: Final = 6000  # of the matrix

COLOURS: Final = {
    EdgeType.LINEAR: "#4c78a8",
    EdgeType.OTHER: "#9aa0a6",
    EdgeType.CONVOLUTION: "#f58518",
    EdgeType.NORM: "#72b7b2",
    EdgeType.WORD_EMBEDDING: "#e45756",
    EdgeType.POSITION_EMBEDDING: "#ff9da6",
    EdgeType.QUERY: "#54a24b",
    EdgeType.KEY: "#88d27a",
    EdgeType.VALUE: "#b79a20",
    EdgeType.RESIDUAL: "#b279a2",
    EdgeType.HEAD: "#7f5b9c",
}
_WIDTH, _HEIGHT, _ACROSS, _DOWN, _INDENT, _MATRIX = 264, 44, 24, 30, 74, 460

Ranges = list[tuple[int, int]]  # (first neuron, one past the last)


@dataclass(eq=False)
class Box:
    """A module: the parameters that share a name up to its last part."""

    name: str  # of a folded one, that of the first
    shapes: list[tuple[int, ...]]  # of its parameters
    size: int  # weights, of one of the repeats
    kind: EdgeType  # of most of its edges
    kinds: tuple[EdgeType, ...]  # of all its edges, biases aside
    folds: tuple["Fold", ...]  # the groups of repeats it is in, outermost first
    sources: Ranges  # the neurons its edges come from
    targets: Ranges  # and go to
    last: Ranges  # of a folded one, those that the last of the repeats leads to
    rank: int = 0


@dataclass(frozen=True, eq=False)
class Fold:
    """Modules that repeat, drawn once: the names of the first and the last, and how many there are."""

    name: str
    times: int


@dataclass(frozen=True)
class Diagram:
    """What is to be drawn: boxes by rank, links between them and whether it is a residual one, how many modules are left out."""

    boxes: list[Box]
    links: list[tuple[Box, Box, bool]]
    left_out: int


def layers(wiring: Wiring) -> Diagram:
    """Put the modules of a network in layers, by how far they are from its inputs; repeats are folded."""
    blocks: dict[int, list[Block]] = defaultdict(list)
    for block in wiring.blocks:
        blocks[block.parameter].append(block)
    named = [(tuple(parameter.name.split(".")), index) for index, parameter in enumerate(wiring.parameters)]
    boxes: list[Box] = []
    for path, folds, indices, final in _modules(named, wiring):
        own = [block for index in indices for block in blocks[index]]
        most = EdgeType(max(own, key=lambda block: block.size).edge_type) if own else EdgeType.OTHER
        kinds = tuple(sorted({EdgeType(block.edge_type) for block in own} - {EdgeType.OTHER})) or (most,)
        targets = _ends(own, 1)
        sources = _ends([block for block in own if block.sources > 1 and not block.diagonal], 0)
        last = _ends([block for index in final for block in blocks[index]], 1)
        parameters = [wiring.parameters[index] for index in indices]
        shapes, size = [parameter.shape for parameter in parameters], sum(parameter.size for parameter in parameters)
        # gains and biases act on what is there
        boxes.append(Box(".".join(path), shapes, size, most, kinds, folds, sources or targets, targets, last or targets))
    kept = boxes[:MAX_BOXES]
    links = _links(kept, [block for block in blocks[STRUCTURE] if block.edge_type == EdgeType.RESIDUAL])
    for box in kept:  # the longest way from the inputs; links lead forward in the order of the boxes
        box.rank = 1 + max((source.rank for source, target, residual in links if target is box and not residual), default=-1)
    return Diagram(sorted(kept, key=lambda box: box.rank), links, len(boxes) - len(kept))


def _modules(
    named: Sequence[tuple[tuple[str, ...], int]], wiring: Wiring, path: tuple[str, ...] = (), folds: tuple[Fold, ...] = ()
) -> Iterable[tuple[tuple[str, ...], tuple[Fold, ...], list[int], list[int]]]:
    """Modules below a path: path, folds, the parameters of the first repeat and those of the last."""
    own = [index for rest, index in named if len(rest) == 1]
    if own:
        yield path or (wiring.parameters[own[0]].name,), folds, own, own
    children = [(name, [(rest[1:], index) for rest, index in group]) for name, group in groupby(
        ((rest, index) for rest, index in named if len(rest) > 1), key=lambda item: item[0][0]
    )]  # fmt: skip

    def kind(child: tuple[str, list[tuple[tuple[str, ...], int]]]) -> object:
        return child[0].isdigit() or child[0], [(rest, wiring.parameters[index].shape) for rest, index in child[1]]

    for _, repeats in groupby(children, key=kind):
        alike = list(repeats)
        (first, inside), (final, ending) = alike[0], alike[-1]
        if len(alike) == 1:
            yield from _modules(inside, wiring, (*path, first), folds)
            continue
        fold = Fold(f"{'.'.join((*path, first))} … {final}", len(alike))
        pairs = zip(_modules(inside, wiring, (*path, first), (*folds, fold)), _modules(ending, wiring), strict=True)
        for (below, deeper, indices, _), (*_, last_indices) in pairs:
            yield below, deeper, indices, last_indices


def _ends(blocks: Sequence[Block], side: int) -> Ranges:
    """The neurons that feed blocks (0), or those they feed (1)."""
    ends = [((block.source, block.source + block.sources), (block.target, block.target + block.targets)) for block in blocks]
    # edges of keys point backwards
    return sorted({pair[side ^ (block.edge_type == EdgeType.KEY)] for block, pair in zip(blocks, ends, strict=True)})


def _overlap(ranges: Ranges, others: Ranges) -> bool:
    """Do two lists of ranges, each sorted, share a neuron?"""
    nearest = ((start, bisect_left(others, (stop,))) for start, stop in ranges)
    return any(end > start for start, before in nearest for _, end in others[max(0, before - 64) : before])


def _links(boxes: Sequence[Box], residuals: Sequence[Block]) -> list[tuple[Box, Box, bool]]:
    """Which box leads to which: forward ones alone, as loops come from folding or from tied weights."""
    found: dict[tuple[Box, Box], bool] = {}
    for index, box in enumerate(boxes):
        for other in boxes[index + 1 :]:
            # from within a fold the first of the repeats leads on; to what is outside it, the last
            if _overlap(box.targets if box.folds[:1] == other.folds[:1] else box.last, other.sources):
                found[box, other] = False
    _drop_detours(boxes, found)
    for block in residuals[:MAX_RECTANGLES]:
        sources = [box for box in boxes if _overlap(_ends([block], 0), box.targets)]
        targets = [box for box in boxes if _overlap(_ends([block], 1), box.targets)]
        if sources and targets and boxes.index(sources[-1]) < boxes.index(targets[-1]):
            found.setdefault((sources[-1], targets[-1]), True)
    return [(box, other, residual) for (box, other), residual in found.items()]


def _drop_detours(boxes: Sequence[Box], links: dict[tuple[Box, Box], bool]) -> None:
    """Drop links that lead where others lead by way of further boxes."""
    onward: dict[Box, set[Box]] = {}
    for box in reversed(boxes):
        following = [other for other in boxes if (box, other) in links]
        beyond = set().union(*(onward[other] for other in following))
        for other in following:
            if other in beyond:
                del links[box, other]
        onward[box] = {*following, *beyond}


def draw_svg(wiring: Wiring, *, alone: bool = False) -> str:
    """Draw the layers, and the matrix of which neurons are joined; `alone` for a file, else in the colours of the page it is in."""
    layered, width, height = _draw_layers(layers(wiring))
    matrix = _draw_matrix(wiring, left=width + 60, top=44)
    legend = _draw_legend(wiring, left=width + 60, top=_MATRIX + 76)
    total, high = width + 60 + _MATRIX + 20, max(height, _MATRIX + 84 + 22 * len({block.edge_type for block in wiring.blocks}))
    ground = f'<rect width="{total}" height="{high}" fill="#ffffff"/>' if alone else ""
    title = f"{wiring.size:,} weights, {wiring.neurons:,} neurons, {wiring.edges:,} edges"
    area = f'width="{total}" height="{high}" viewBox="0 0 {total} {high}"'
    look = 'role="img" font-family="system-ui, sans-serif" font-size="13"' + (' color="#16202c"' if alone else "")
    opening = f'<svg xmlns="http://www.w3.org/2000/svg" {area} {look}>'
    return f"{opening}<title>{title}</title>{ground}{layered}{matrix}{legend}</svg>"


def _draw_layers(diagram: Diagram) -> tuple[str, int, int]:
    """The boxes with their links: SVG, width, height."""
    ranks = [list(row) for _, row in groupby(diagram.boxes, key=lambda box: box.rank)]
    indent = 12 + _INDENT * max((len(box.folds) for box in diagram.boxes), default=0)
    most = max(map(len, ranks), default=1)
    width = indent + most * (_WIDTH + _ACROSS) + 40
    places: dict[Box, tuple[float, float]] = {}
    for depth, row in enumerate(ranks):
        left = indent + (most - len(row)) * (_WIDTH + _ACROSS) / 2
        for column, box in enumerate(row):
            places[box] = (left + column * (_WIDTH + _ACROSS), 16 + depth * (_HEIGHT + _DOWN))
    height = 16 + len(ranks) * (_HEIGHT + _DOWN) + 30
    links = "".join(_link(places[box], places[other], residual) for box, other, residual in diagram.links)
    boxes = "".join(_box(box, *places[box]) for box in diagram.boxes)
    folds = "".join(_brackets(diagram.boxes, places))
    note = f"and {diagram.left_out:,} modules more" if diagram.left_out else ""
    return links + boxes + folds + _text(indent, height - 8, note, opacity=0.75), width, height


def _box(box: Box, x: float, y: float) -> str:
    shapes = ", ".join("×".join(map(str, shape)) or "scalar" for shape in box.shapes[:2])
    colour = COLOURS[box.kind]
    frame = f'rx="7" fill="{colour}" fill-opacity="0.22" stroke="{colour}"'
    rectangle = f'<rect x="{x:.0f}" y="{y:.0f}" width="{_WIDTH}" height="{_HEIGHT}" {frame}/>'
    name = _text(x + 10, y + 18, _shortened(box.name, 30), weight=600)
    kinds = " ".join(kind.words for kind in box.kinds)
    about = _text(x + 10, y + 35, f"{kinds} {_shortened(shapes, 20)} · {_count(box.size)}", opacity=0.8)
    return f"<g><title>{html.escape(box.name)}: {box.kind.words}, {box.size:,} weights</title>{rectangle}{name}{about}</g>"


def _link(start: tuple[float, float], end: tuple[float, float], residual: bool) -> str:  # noqa: FBT001 -- of the diagram's own
    (x, y), (to_x, to_y) = (start[0] + _WIDTH / 2, start[1] + _HEIGHT), (end[0] + _WIDTH / 2, end[1])
    look = 'stroke="currentColor" stroke-opacity="0.55"'
    if residual:
        look = f'stroke="{COLOURS[EdgeType.RESIDUAL]}" stroke-dasharray="5 4"'
    if to_y - y <= _DOWN + 1:
        middle = (y + to_y) / 2
        path = f"M{x:.0f} {y:.0f}C{x:.0f} {middle:.0f} {to_x:.0f} {middle:.0f} {to_x:.0f} {to_y:.0f}"
    else:  # beside the boxes in between
        side = max(start[0], end[0]) + _WIDTH + 8 + min(28.0, (to_y - y) / 20)
        x, to_x = start[0] + _WIDTH, end[0] + _WIDTH
        y, to_y = start[1] + _HEIGHT - 10, end[1] + 10
        path = f"M{x:.0f} {y:.0f}C{side + 10:.0f} {y:.0f} {side + 10:.0f} {to_y:.0f} {to_x:.0f} {to_y:.0f}"
    return f'<path d="{path}" fill="none" {look} stroke-width="1.4"/>'


def _brackets(boxes: Sequence[Box], places: dict[Box, tuple[float, float]]) -> Iterable[str]:
    depth = {fold: level for box in boxes for level, fold in enumerate(box.folds)}
    for fold, level in depth.items():
        inside = [places[box][1] for box in boxes if fold in box.folds]
        top, bottom, x = min(inside) - 4, max(inside) + _HEIGHT + 4, 66 + level * _INDENT
        yield (
            f'<path d="M{x + 8} {top:.0f}H{x}V{bottom:.0f}H{x + 8}" fill="none" stroke="currentColor" stroke-width="1.6">'
            f"<title>{html.escape(fold.name)}</title></path>"
        )
        yield _text(x - 6, (top + bottom) / 2 + 5, f"×{fold.times}", weight=700, anchor="end")


def _draw_matrix(wiring: Wiring, *, left: float, top: float) -> str:
    """Rows are sources, columns targets; of many blocks the largest are drawn."""
    scale = _MATRIX / wiring.neurons
    blocks = sorted(wiring.blocks, key=lambda block: -block.edges)[:MAX_RECTANGLES]
    parts = [
        _text(left, top - 26, "Which neurons are joined", weight=600),
        _text(left, top - 8, f"rows: from, columns: to, 0 to {wiring.neurons - 1:,}", opacity=0.8),
        f'<rect x="{left}" y="{top}" width="{_MATRIX}" height="{_MATRIX}" fill="none" stroke="currentColor" stroke-opacity="0.4"/>',
    ]
    for block in blocks:
        x, y = left + block.target * scale, top + block.source * scale
        wide, high = max(1.0, block.targets * scale), max(1.0, block.sources * scale)
        colour = COLOURS[EdgeType(block.edge_type)]
        if block.diagonal:
            parts.append(f'<path d="M{x:.1f} {y:.1f}l{wide:.1f} {high:.1f}" stroke="{colour}" stroke-width="1.2"/>')
        else:
            parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{high:.1f}" fill="{colour}"/>')
    return "".join(parts)


def _draw_legend(wiring: Wiring, *, left: float, top: float) -> str:
    counts: dict[EdgeType, int] = defaultdict(int)
    for block in wiring.blocks:
        counts[EdgeType(block.edge_type)] += block.edges
    parts = []
    for row, (kind, edges) in enumerate(sorted(counts.items())):
        y = top + 22 * row
        parts.append(f'<rect x="{left}" y="{y - 11:.0f}" width="14" height="14" rx="3" fill="{COLOURS[kind]}"/>')
        parts.append(_text(left + 22, y, f"{kind.words}: {edges:,} edges"))
    return "".join(parts)


def _text(x: float, y: float, text: str, *, weight: int = 400, opacity: float = 1.0, anchor: str = "start") -> str:
    look = f'font-weight="{weight}" fill="currentColor" fill-opacity="{opacity}" text-anchor="{anchor}"'
    return f'<text x="{x:.0f}" y="{y:.0f}" {look}>{html.escape(text)}</text>' if text else ""


def _shortened(text: str, most: int) -> str:
    return text if len(text) <= most else f"…{text[1 - most :]}"


def _count(value: int) -> str:
    thousands = min((len(str(value)) - 1) // 3, 4)
    return f"{float(f'{value / 1000**thousands:.3g}'):g}{' KMBT'[thousands].strip()}"
