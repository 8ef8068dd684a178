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
        inputs: what the model was run with, None if it did not run as a whole.
    """

    wiring: Wiring
    how: dict[str, str]
    placed: dict[str, float]
    remarks: list[str]
    inputs: str | None


def trace(model: nn.Module, parameters: tuple[Parameter, ...], chosen: set[str], example_inputs: Any, *, heads: bool) -> Trace:
    """Wire the module by running it; example inputs as `wire` takes them.

    Args:
        model: the module.
        parameters: all of its parameters, in order.
        chosen: names of those to wire; the others are followed, but nothing is drawn for them.
        example_inputs: what `forward` takes, None to guess.
        heads: see `wire`.
    """
    with undisturbed():
        seen = run(model, parameters, chosen, example_inputs)
        wiring, placed = lay_out(seen.tracer, parameters, chosen, heads=heads)
    how = {}
    for name, path in seen.part.items():
        if placed.get(name) and name not in seen.alone:
            how[name] = "traced apart" if path else "traced"
    lost = [f"operator {name} could not be followed: {why}" for name, why in seen.tracer.lost.items()]
    return Trace(wiring, how, placed, [*seen.remarks, *lost], seen.inputs)
