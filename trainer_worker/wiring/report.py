"""How a module was wired, parameter by parameter: as a sentence, and as a table on a terminal."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from protos.diagram import draw_svg
from protos.wiring import Block, EdgeType, Wiring

if TYPE_CHECKING:
    from rich.console import Console

FALLBACK, SCALAR = "fallback", "scalar"


@dataclass(frozen=True)
class Row:
    """One parameter."""

    name: str
    shape: tuple[int, ...]
    how: str  # "traced", "traced apart", "scalar" (in no block) or "fallback" (neurons of its own)
    followed: float  # the share of its weights whose place in the network is known; the others have neurons of their own
    blocks: tuple[Block, ...]

    @property
    def kinds(self) -> tuple[EdgeType, ...]:
        return tuple(EdgeType(kind) for kind in dict.fromkeys(block.edge_type for block in self.blocks))

    @property
    def sources(self) -> str:
        """The first and last neuron from which its weights start."""
        return _span(range(block.source, block.source + block.sources) for block in self.blocks)

    @property
    def targets(self) -> str:
        """The first and last neuron in which its weights end."""
        return _span(range(block.target, block.target + block.targets) for block in self.blocks)


def _span(ends: Iterable[range]) -> str:
    numbers = {number for each in ends for number in (each[0], each[-1])}
    return "-".join(map(str, sorted({min(numbers), max(numbers)}))) if numbers else "-"


@dataclass(frozen=True)
class WiringReport:
    """A wiring and how it came about."""

    wiring: Wiring
    model: str  # the module's class
    rows: tuple[Row, ...]
    remarks: tuple[str, ...] = ()  # what went wrong on the way, one sentence each
    inputs: str | None = None  # what the model was run with: "guessed inputs 2x3x32x32 float32"; None if not run as a whole
    left_out: tuple[str, ...] = ()  # parameters that were asked for but cannot be forecast, each with its dtype

    @property
    def coverage(self) -> float:
        """The share of all weights that are wired into the network, not by fallback."""
        return sum(math.prod(row.shape) * row.followed for row in self.rows) / max(1, self.wiring.size)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Parameters with neurons of their own."""
        return tuple(row.name for row in self.rows if row.how == FALLBACK)

    @property
    def sentence(self) -> str:
        """The coverage, and how it was found, in one line for a log or summary."""
        alone = self.fallbacks
        told = f"traced with {self.inputs}" if self.inputs is not None else "; ".join(self.remarks[:1])
        how = f" ({told})" if told else ""  # else nothing had to be run
        rest = f"; {len(alone)} parameters have neurons of their own, first {alone[0]!r}" if alone else ""
        return f"{self.coverage:.1%} of {self.wiring.size:,} weights are wired into the network{how}{rest}"

    def summary(self) -> dict[str, object]:
        """The coverage, what was run with which inputs, and how many parameters have neurons of their own, JSON-able."""
        return {"coverage": round(self.coverage, 4), "inputs": self.inputs, "apart": len(self.fallbacks)}


def show(report: WiringReport, console: "Console") -> None:
    """Print a table of the parameters, and what could not be followed."""
    from rich.table import Table

    title = f"{report.model}: {report.wiring.size:,} weights, {report.wiring.neurons:,} neurons, {report.wiring.edges:,} edges"
    table = Table(title=title)
    for heading in ("parameter", "shape", "how", "edges", "from neurons", "to neurons", "blocks"):
        table.add_column(heading, justify="right" if heading == "blocks" else "left", overflow="fold")
    for row in report.rows:
        shape = "x".join(map(str, row.shape)) or "scalar"
        kinds = ", ".join(kind.words for kind in row.kinds) or "-"
        cells = (row.name, shape, row.how, kinds, row.sources, row.targets, str(len(row.blocks)))
        table.add_row(*cells, style="yellow" if row.how == FALLBACK else None)
    console.print(table)
    for remark in report.remarks:
        console.print(remark, style="yellow", markup=False, highlight=False)
    console.print(f"{report.sentence}\nhash {report.wiring.hash}", markup=False, highlight=False)


def draw(report: WiringReport, path: Path) -> None:
    """Draw the network's layers, repeats folded, and which neurons are joined, as SVG. Raises `ValueError` for other endings."""
    if path.suffix.lower() != ".svg":
        raise ValueError(f"{path}: the picture is SVG, which browsers and editors open: give a name that ends in .svg")
    path.write_text(draw_svg(report.wiring, alone=True), encoding="utf-8")
