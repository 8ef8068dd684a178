"""Automatic wiring: run the module once and follow which neurons every tensor carries."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from protos.wiring import Parameter, Wiring
from trainer_worker.wiring.trace.layout import lay_out
from trainer_worker.wiring.trace.run import run, undisturbed


@dataclass(frozen=True)
class Trace:
    """A wiring found by tracing.

    Args:
        how: for each parameter that was placed, "traced" or "traced apart" (in a part of the model that was run by itself).
        placed: for each parameter the share of its weights that was placed.
        remarks: what could not be run or followed.
    """

    wiring: Wiring
    how: dict[str, str]
    placed: dict[str, float]
    remarks: list[str]


def trace(model: nn.Module, parameters: tuple[Parameter, ...], example_inputs: Any, *, heads: bool) -> Trace:
    """Wire the module by running it; example inputs as `wire` takes them."""
    with undisturbed():
        seen = run(model, parameters, example_inputs)
        wiring, placed = lay_out(seen.tracer, parameters, heads=heads)
    how = {}
    for name, path in seen.part.items():
        if placed[name] and name not in seen.alone:
            how[name] = "traced apart" if path else "traced"
    lost = [f"operator {name} could not be followed: {why}" for name, why in seen.tracer.lost.items()]
    return Trace(wiring, how, placed, [*seen.remarks, *lost])
