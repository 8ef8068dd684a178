"""The report as a table on a terminal and the graph as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

from protos.wiring import EdgeType
from trainer_worker.wiring.report import FALLBACK, WiringReport

if TYPE_CHECKING:
    import numpy as np
    from rich.console import Console

COLOURS = {
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
_DRAWN_EDGES = 4000


def show(report: WiringReport, console: "Console") -> None:
    """Print a table of the parameters, what is structure, and what could not be followed."""
    from rich.table import Table

    title = f"{report.model}: {report.wiring.size:,} weights, {report.wiring.neurons:,} neurons, {report.wiring.edges:,} edges"
    table = Table(title=title, caption=f"{report.coverage:.1%} of the weights are wired into the network")
    for heading in ("parameter", "shape", "how", "edges", "from neurons", "to neurons", "blocks"):
        table.add_column(heading, justify="right" if heading == "blocks" else "left", overflow="fold")
    for row in report.rows:
        kinds = ", ".join(_words(kind) for kind in row.kinds) or "-"
        cells = (
            row.name,
            "x".join(map(str, row.shape)) or "scalar",
            row.how,
            kinds,
            _span(row.sources),
            _span(row.targets),
            str(row.blocks),
        )
        table.add_row(*cells, style="yellow" if row.how == FALLBACK else None)
    console.print(table)
    for kind, edges in report.structure.items():
        console.print(f"{edges:,} {kind} edges without weights")
    for remark in report.remarks:
        console.print(remark, style="yellow", markup=False, highlight=False)


def draw(report: WiringReport, path: Path) -> None:
    """Draw the graph: neurons in layers from left to right by distance from the inputs, edges coloured by type.

    Of a large network every so many edges of a block are drawn. The format follows the file's ending (png, svg, pdf).
    """
    from matplotlib.collections import LineCollection
    from matplotlib.figure import Figure

    positions = _positions(report)
    figure = Figure(figsize=(14, 8), layout="constrained")
    axes = figure.subplots()
    share = max(1, report.wiring.edges // _DRAWN_EDGES)
    for kind, colour in COLOURS.items():
        lines = [(positions[source], positions[target]) for source, target in _edges(report, kind, share)]
        if lines:
            axes.add_collection(LineCollection(lines, colors=colour, linewidths=0.4, alpha=0.5, label=_words(kind)))
    step = max(1, len(positions) // 5000)
    axes.scatter(*positions[::step].T, color="black", zorder=3, linewidths=0, sizes=[6])
    axes.set(title=f"{report.model}: {report.wiring.neurons:,} neurons, {report.wiring.edges:,} edges", xticks=[], yticks=[])
    axes.set_xlabel("distance from the inputs")
    for line in figure.legend(loc="outside right upper").get_lines():
        line.set(linewidth=2, alpha=1)
    figure.savefig(path, dpi=150)


def _words(kind: EdgeType) -> str:
    return kind.name.lower().replace("_", " ")


def _span(ends: tuple[int, int] | None) -> str:
    return "-" if ends is None else str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"


def _edges(report: WiringReport, kind: EdgeType, share: int) -> list[tuple[int, int]]:
    """Every `share`-th edge of one type."""
    edges = []
    for block in report.wiring.blocks:
        if block.edge_type == kind:
            for index in range(0, block.edges, share):
                source, target = (index, index) if block.diagonal else divmod(index, block.targets)
                edges.append((block.source + source, block.target + target))
    return edges


def _positions(report: WiringReport) -> "np.ndarray":
    """Where each neuron is drawn: its layer, and its place among the neurons there. (neurons, 2)."""
    import numpy as np

    wiring = report.wiring
    layer = np.zeros(wiring.neurons, dtype=np.int64)
    for block in wiring.blocks:
        sources = slice(block.source, block.source + block.sources)
        targets = slice(block.target, block.target + block.targets)
        overlap = sources.start < targets.stop and targets.start < sources.stop
        if block.edge_type not in {EdgeType.KEY, EdgeType.HEAD} and sources.start < targets.stop and not overlap:
            layer[targets] = np.maximum(layer[targets], 1 + layer[sources].max())
    for block in wiring.blocks:  # biases and heads stand just before what they point to
        if block.sources == 1:
            layer[block.source] = max(0, layer[block.target] - 1)
    order = np.argsort(layer, kind="stable")
    counts = np.bincount(layer)
    place = np.empty(wiring.neurons)
    place[order] = np.arange(wiring.neurons) - np.repeat(counts.cumsum() - counts, counts)
    return np.stack([layer, (place + 0.5) / counts[layer]], axis=1)
