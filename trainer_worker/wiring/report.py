"""How a module was wired, parameter by parameter."""

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property

from protos.wiring import STRUCTURE, Block, EdgeType, Wiring

FALLBACK, SCALAR = "fallback", "scalar"


@dataclass(frozen=True)
class Row:
    """One parameter.

    Args:
        name, shape: the parameter's.
        how: "family", "traced", "traced apart", "scalar" (in no block) or "fallback" (neurons of its own).
        kinds: types of its edges.
        sources, targets: neuron ranges (first, last) over all its blocks; None for a scalar.
        blocks: how many blocks it takes.
        followed: the share of its weights whose place in the network is known; the others have neurons of their own.
    """

    name: str
    shape: tuple[int, ...]
    how: str
    kinds: tuple[EdgeType, ...]
    sources: tuple[int, int] | None
    targets: tuple[int, int] | None
    blocks: int
    followed: float

    @property
    def size(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class WiringReport:
    """A wiring and how it came about.

    Args:
        wiring: the result.
        model: the module's class.
        family: the named family it was read as, None if it was traced.
        how, followed: for each parameter as in `Row`.
        remarks: what went wrong on the way, one sentence each.
        inputs: what the model was run with: "guessed inputs 2x3x32x32 float32"; None if it was not run as a whole.
        left_out: parameters that were asked for but cannot be forecast, each with its dtype.
    """

    wiring: Wiring
    model: str
    family: str | None
    how: dict[str, str]
    followed: dict[str, float]
    remarks: tuple[str, ...] = ()
    inputs: str | None = None
    left_out: tuple[str, ...] = ()

    @cached_property
    def rows(self) -> tuple[Row, ...]:
        """One for each parameter, in the order of the flat vector."""
        blocks: list[list[Block]] = [[] for _ in self.wiring.parameters]
        for block in self.wiring.blocks:
            if block.parameter != STRUCTURE:
                blocks[block.parameter].append(block)
        return tuple(
            Row(
                parameter.name,
                parameter.shape,
                self.how[parameter.name],
                tuple(EdgeType(kind) for kind in dict.fromkeys(block.edge_type for block in own)),
                _range([(block.source, block.sources) for block in own]),
                _range([(block.target, block.targets) for block in own]),
                len(own),
                self.followed[parameter.name],
            )
            for parameter, own in zip(self.wiring.parameters, blocks, strict=True)
        )

    @property
    def coverage(self) -> float:
        """The share of all weights that are wired into the network, not by fallback."""
        return sum(row.size * row.followed for row in self.rows) / max(1, self.wiring.size)

    @property
    def fallbacks(self) -> tuple[str, ...]:
        """Parameters with neurons of their own."""
        return tuple(row.name for row in self.rows if row.how == FALLBACK)

    @property
    def sentence(self) -> str:
        """The coverage, and how it was found, in one line for a log or summary."""
        if self.family is not None:
            how = f"read as {self.family}"
        elif self.inputs is not None:
            how = f"traced with {self.inputs}"
        else:
            how = "the model could not be run as a whole; give example inputs"
        alone = self.fallbacks
        rest = f"; {len(alone)} parameters have neurons of their own, first {alone[0]!r}" if alone else ""
        return f"{self.coverage:.1%} of {self.wiring.size:,} weights are wired into the network ({how}){rest}"

    def summary(self) -> dict[str, object]:
        """The coverage, what was run with which inputs, and how many parameters have neurons of their own, JSON-able."""
        return {"coverage": round(self.coverage, 4), "inputs": self.inputs, "apart": len(self.fallbacks)}

    @property
    def structure(self) -> dict[str, int]:
        """Edges without weights by type, self loops aside."""
        counts: Counter[str] = Counter()
        for block in self.wiring.blocks:
            if block.parameter == STRUCTURE:
                counts[EdgeType(block.edge_type).name.lower()] += block.edges
        return dict(counts)


def _range(ends: list[tuple[int, int]]) -> tuple[int, int] | None:
    return (min(start for start, _ in ends), max(start + count for start, count in ends) - 1) if ends else None
