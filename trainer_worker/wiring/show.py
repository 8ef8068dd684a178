"""The report as a table on a terminal and the network as a picture."""

from pathlib import Path
from typing import TYPE_CHECKING

from protos.diagram import draw_svg
from protos.wiring import EdgeType
from trainer_worker.wiring.report import FALLBACK, WiringReport

if TYPE_CHECKING:
    from rich.console import Console


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
    """Draw the network's layers, repeats folded, and the matrix of which neurons are joined, as SVG.

    Raises:
        ValueError: the file's name ends otherwise.
    """
    if path.suffix.lower() != ".svg":
        raise ValueError(f"{path}: the picture is SVG, which browsers and editors open: give a name that ends in .svg")
    path.write_text(draw_svg(report.wiring, alone=True), encoding="utf-8")


def _words(kind: EdgeType) -> str:
    return kind.name.lower().replace("_", " ")


def _span(ends: tuple[int, int] | None) -> str:
    return "-" if ends is None else str(ends[0]) if ends[0] == ends[1] else f"{ends[0]}-{ends[1]}"
