"""Skill on held-out trajectories: 1 - error of a forecast / error of `last` ("nothing changes")."""

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from nowcast_server.forecasters.simple import line_weights
from trainer_worker.metatrain.library import Group
from trainer_worker.metatrain.loss import mean_error, predict
from trainer_worker.metatrain.model import build
from trainer_worker.metatrain.windows import Cut, Windows, read_windows

HORIZONS = (5, 10, 20, 40)
STARTS = (0.0, 0.3, 0.6)
"""Where in what a run allows the judged windows start."""

Predictor = Callable[[Windows], Tensor]
Skill = dict[str, dict[str, dict[str, float]]]
"""By forecaster, then kind of network or `all`, then horizon."""


def judged_windows(groups: tuple[Group, ...], *, runs: int = 2, stride: int = 2, context: int = 5) -> Iterator[tuple[str, Windows]]:
    """Windows at fixed places of the first runs of each group, and the kind of network."""
    for group in groups:
        cuts = []
        for run in group.runs[:runs]:
            step = stride if len(run.steps) > stride * (context + 10) else 1
            latest = len(run.steps) - 1 - (context - 1 + 10) * step
            starts = {min(latest, max(step, int(place * latest))) for place in STARTS if latest > 0}
            cuts += [Cut(run, start, step) for start in sorted(starts)]
        for cut in cuts:
            yield group.kind, read_windows(group, [cut], HORIZONS, context=context)


def last(windows: Windows) -> Tensor:
    """Nothing changes."""
    return torch.zeros_like(windows.change)


def average(windows: Windows) -> Tensor:
    """The mean of the context."""
    mean = windows.z[..., windows.plan.weights].mean(1)
    return (mean - windows.last)[..., None].expand_as(windows.change)


def linear(windows: Windows) -> Tensor:
    """The least-squares line through the context, continued."""
    states = windows.z[..., windows.plan.weights]
    weights = line_weights(states.shape[1], windows.horizons).to(states)  # (horizons, context)
    return torch.einsum("hc,wcm->wmh", weights, states) - windows.last[..., None]


def of_model(model: nn.Module) -> Predictor:
    return lambda windows: predict(model, windows)


def load_predictor(path: Path) -> Predictor:
    """The model of a checkpoint.

    Raises:
        CheckpointError: the file holds none.
    """
    from nowcast_server.nino.checkpoint import load_checkpoint

    return of_model(build(load_checkpoint(path)))


RIVALS: dict[str, Predictor] = {"average": average, "linear": linear}


@dataclass(frozen=True, slots=True)
class _Sums:
    """Skill summed over windows, and how many there are: (horizons,) each."""

    total: Tensor
    count: Tensor


@torch.no_grad()
def skill(groups: tuple[Group, ...], predictors: dict[str, Predictor], *, stride: int = 2) -> Skill:
    """Mean skill over windows, 1 - error / error of `last`; every window counts alike."""
    sums: dict[tuple[str, str], _Sums] = defaultdict(lambda: _Sums(torch.zeros(len(HORIZONS)), torch.zeros(len(HORIZONS))))
    for kind, windows in judged_windows(groups, stride=stride):
        unchanged = mean_error(last(windows), windows)[0]
        for name, predictor in predictors.items():
            won = (1 - mean_error(predictor(windows), windows)[0] / unchanged.clamp(min=1e-9)) * windows.known[0]
            for scope in (kind, "all"):
                sums[name, scope].total.add_(won)
                sums[name, scope].count.add_(windows.known[0])
    found: Skill = {}
    for (name, scope), held in sums.items():
        values = (held.total / held.count.clamp(min=1)).tolist()
        found.setdefault(name, {})[scope] = {str(h): round(v, 4) for h, v in zip(HORIZONS, values, strict=True)}
    return found
