"""Windows: a context cut out of a trajectory, and what training went on to do."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from nowcast_server.nino.checkpoint import EPSILON
from nowcast_server.trajectories.store import Trajectory
from protos.wiring import Wiring
from trainer_worker.metatrain.library import Group, wiring_of
from trainer_worker.metatrain.plan import Plan, plan

STRATA = ((1, 4), (5, 9), (10, 14), (15, 19), (20, 24), (25, 29), (30, 34), (35, 40))
"""One horizon is drawn from each: three quarters of the loss lie at 10 and beyond, where the gain of a nowcast is."""

MOST_CHANGE = 10.0
"""Changes of a weight are cut off here, in standard deviations of its tensor: a tensor that hardly moved within the context
(a normalisation's weights, early on) would otherwise outweigh the rest of the network."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Where a window lies.

    Args:
        run: the trajectory.
        start: first snapshot of the context.
        stride: snapshots between two of the context's.
        averaged: whether each snapshot of the context is the mean of the `stride` snapshots up to it.
    """

    run: Trajectory
    start: int
    stride: int
    averaged: bool = False


@dataclass(frozen=True, slots=True)
class Windows:
    """Standardised windows of one wiring, ready for a model; m weights in the order of `plan.weights`.

    Args:
        plan: of the wiring.
        z: (windows, context, n).
        last: (windows, m) the last snapshot.
        change: (windows, m, horizons) how far each weight went from there, 0 where it is not known.
        known: (windows, horizons) bool, whether the trajectory reaches so far.
        horizons: in strides.
    """

    plan: Plan
    z: Tensor
    last: Tensor
    change: Tensor
    known: Tensor
    horizons: tuple[int, ...]


def draw_horizons(rng: np.random.Generator) -> tuple[int, ...]:
    """One horizon of each stratum."""
    return tuple(int(rng.integers(low, high + 1)) for low, high in STRATA)


def draw_cuts(rng: np.random.Generator, group: Group, *, count: int, context: int = 5, averaged: float = 0.0) -> list[Cut]:
    """Windows at random: strides of 1 to 4 snapshots, so that one run serves as several with other intervals.

    A fifth of them start where a run's first nowcast does; the rest favour the early part, where most of the movement is.
    """
    cuts = []
    for _ in range(count):
        run = group.runs[rng.integers(len(group.runs))]
        stride = int(rng.choice([1, 2, 3, 4], p=[0.25, 0.35, 0.2, 0.2]))
        while stride > 1 and _latest(run, stride, context) < stride:
            stride -= 1
        latest = max(_latest(run, stride, context), 0)
        first = min(stride, latest)
        start = first if rng.random() < 0.2 else first + int((latest - first) * rng.random() ** 1.5)
        cuts.append(Cut(run, start, stride, averaged=stride > 1 and bool(rng.random() < averaged)))
    return cuts


def _latest(run: Trajectory, stride: int, context: int) -> int:
    """The last start that leaves a future of five strides."""
    return len(run.steps) - 1 - (context - 1 + 5) * stride


def read_windows(
    group: Group,
    cuts: Sequence[Cut],
    horizons: tuple[int, ...],
    *,
    context: int = 5,
    laplacian: int = 8,
    words: Tensor | None = None,
) -> Windows:
    """Read and standardise windows.

    Args:
        group: whose runs the cuts are of.
        cuts: all of this group.
        horizons: to read the future at.
        context: snapshots.
        laplacian: features of a neuron.
        words: (words,) the rows of a gpt's vocabulary to keep; all by default.
    """
    states = torch.stack([_context(cut, context) for cut in cuts])
    future, known = zip(*(_future(cut, context, horizons) for cut in cuts), strict=True)
    targets = torch.stack(future)  # (windows, horizons, n)
    wiring = group.wiring
    if words is not None:
        assert group.design is not None
        design = replace(group.design, inputs=len(words), outputs=len(words))
        kept = _columns(group.wiring, words)
        states, targets, wiring = states[..., kept], targets[..., kept], wiring_of(design)
    laid = plan(wiring, laplacian=laplacian)
    mean, scale = fit_scales(states, laid.sizes)
    z = (states - mean) / (scale + EPSILON)
    last = z[:, -1, laid.weights]
    after = ((targets - mean) / (scale + EPSILON))[..., laid.weights]
    reached = torch.tensor(known)
    change = (after - last[:, None]).clamp(-MOST_CHANGE, MOST_CHANGE) * reached[:, :, None]
    return Windows(laid, z, last, change.transpose(1, 2), reached, horizons)


def _context(cut: Cut, context: int) -> Tensor:
    index = cut.start + cut.stride * np.arange(context)
    if not cut.averaged:
        return torch.from_numpy(cut.run.states(index))
    spread = index[:, None] - np.arange(cut.stride)  # (context, stride)
    return torch.unflatten(torch.from_numpy(cut.run.states(spread.ravel())), 0, spread.shape).mean(1)


def _future(cut: Cut, context: int, horizons: tuple[int, ...]) -> tuple[Tensor, list[bool]]:
    index = cut.start + cut.stride * (context - 1 + np.array(horizons))
    known = index < len(cut.run.steps)
    return torch.from_numpy(cut.run.states(np.where(known, index, 0))), known.tolist()


def _columns(wiring: Wiring, words: Tensor) -> Tensor:
    """Positions in the flat vector once the first tensor, the word embedding, has only the rows `words`."""
    rows, width = wiring.parameters[0].shape
    rest = torch.arange(rows * width, wiring.size)
    return torch.cat(((words[:, None] * width + torch.arange(width)).flatten(), rest))


def fit_scales(states: Tensor, sizes: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each tensor and its snapshots together: (windows, 1, n) each of (windows, context, n).

    `Standardisation` for a batch of contexts.
    """
    pairs = [torch.std_mean(tensor, dim=(1, 2)) for tensor in torch.split(states, list(sizes), dim=2)]
    repeats = torch.tensor(sizes)
    scale, mean = (torch.stack(column, dim=1).repeat_interleave(repeats, dim=1) for column in zip(*pairs, strict=True))
    return mean[:, None], scale[:, None]
