"""Show a wiring as a table and a picture, both bounded: the wiring may be hostile."""

from dataclasses import dataclass
from typing import Final

from protos.diagram import MAX_BLOCKS, draw_svg
from protos.wiring import STRUCTURE, EdgeType, Wiring

MAX_ROWS: Final = 400


@dataclass(frozen=True)
class Row:
    """A parameter.

    Args:
        name, shape: as text.
        kinds: of its edges.
        edges: how many.
    """

    name: str
    shape: str
    kinds: str
    edges: int


@dataclass(frozen=True)
class WiringTable:
    """A wiring as the page shows it.

    Args:
        rows: the first `MAX_ROWS` parameters.
        more: how many are left out.
        picture: SVG; empty if there are too many blocks to draw.
    """

    rows: list[Row]
    more: int
    picture: str


def wiring_table(wiring: Wiring) -> WiringTable:
    """Make the table and the picture; takes a second for the largest wirings."""
    kinds: dict[int, dict[str, int]] = {}
    for block in wiring.blocks:
        if block.parameter != STRUCTURE and block.parameter < MAX_ROWS:
            held = kinds.setdefault(block.parameter, {})
            name = EdgeType(block.edge_type).name.lower().replace("_", " ")
            held[name] = held.get(name, 0) + block.edges
    rows = [
        Row(
            parameter.name,
            " × ".join(map(str, parameter.shape)) or "scalar",
            ", ".join(kinds.get(index, {})) or "–",
            sum(kinds.get(index, {}).values()),
        )
        for index, parameter in enumerate(wiring.parameters[:MAX_ROWS])
    ]
    picture = draw_svg(wiring) if len(wiring.blocks) <= MAX_BLOCKS else ""
    return WiringTable(rows, max(0, len(wiring.parameters) - MAX_ROWS), picture)
