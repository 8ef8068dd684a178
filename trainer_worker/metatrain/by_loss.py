"""Judging forecasters by what counts: the steps that gliding along them saves, from recorded states on."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import accumulate, pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from nowcast_server.trajectories.store import Trajectory
from trainer_worker.boundary import default_interval
from trainer_worker.metatrain.draw import feed_of
from trainer_worker.metatrain.feeds import Feed, View
from trainer_worker.metatrain.library import Group
from trainer_worker.metatrain.networks import Design
from trainer_worker.metatrain.stack import loss_of
from trainer_worker.nowcast import Nowcast
from trainer_worker.push import Push

PLACES: Final = (0.1, 0.3, 0.6)
"""Where in what a run allows its recorded states are gone on from."""
AHEAD: Final = 30
"""Intervals from there to where runs are compared; pushes begin after six."""
MEMORY: Final = 10
"""Of the averages, in intervals."""
EXAMPLES: Final = 1024
"""That the loss of an average is measured on; the same for all."""


@dataclass(frozen=True, slots=True)
class Compared:
    """What gliding saved from one recorded state on.

    Args:
        kind: of the network.
        saved: by forecaster, the share of a plain run's steps; empty where the plain run's loss no longer falls.
    """

    kind: str
    saved: dict[str, float]


def by_loss(groups: Sequence[Group], forecasters: Mapping[str, str | Path], *, runs: int = 2) -> Iterator[Compared]:
    """Go on from recorded states, without pushes and along each forecaster, on the same batches.

    Adam begins anew at a recorded state, in all alike.

    Args:
        groups: whose networks, tasks and settings are known; runs that a server recorded are passed over.
        forecasters: by the name to show, what `Nowcast` takes: a name, or a file of weights.
        runs: of each group, at most.
    """
    for group in groups:
        for run in group.runs[:runs] if group.design else ():
            for index in sorted({int(place * (len(run.steps) - 1)) for place in PLACES}):
                yield _compare(group, run, index, forecasters)


@dataclass(frozen=True, slots=True)
class Row:
    """What gliding along a forecaster saved, summed up.

    Args:
        forecaster: its name.
        kind: of network, or `all`.
        saved: share of a plain run's steps, with its standard error.
        ahead: by how much that is more than what the first forecaster saved from the same state, with its standard error.
        states: how many.
    """

    forecaster: str
    kind: str
    saved: tuple[float, float]
    ahead: tuple[float, float]
    states: int


def table(found: Sequence[Compared]) -> Iterator[Row]:
    """Rows by kind of network and forecaster, from the states whose loss falls."""
    falling = [compared for compared in found if compared.saved]
    names = list(falling[0].saved) if falling else []
    for kind in [*sorted({compared.kind for compared in falling}), "all"]:
        rows = [compared.saved for compared in falling if kind in (compared.kind, "all")]
        for name in names:
            ahead = trimmed([saved[name] - saved[names[0]] for saved in rows])
            yield Row(name, kind, trimmed([saved[name] for saved in rows]), ahead, len(rows))


def trimmed(values: Sequence[float]) -> tuple[float, float]:
    """Mean without the lowest and the highest fifth, and its standard error, by what is left when these are drawn in."""
    ordered, cut = sorted(values), len(values) // 5
    kept = ordered[cut : len(ordered) - cut]
    drawn_in = [min(max(value, kept[0]), kept[-1]) for value in ordered]
    error = stdev(drawn_in) * math.sqrt(len(ordered)) / len(kept) if len(ordered) > 1 else math.nan
    return fmean(kept), error


def _compare(group: Group, run: Trajectory, index: int, forecasters: Mapping[str, str | Path]) -> Compared:
    state = torch.from_numpy(run.states(slice(index, index + 1))[0].copy())
    interval = default_interval(int(run.steps[-1]))
    train = partial(_train, run.header, state, interval=interval)
    plain = train(range(AHEAD // 2, 2 * AHEAD + 1, AHEAD // 10), forecaster=None)
    pushed = forecasters if falls(plain) else {}
    return Compared(group.kind, {name: steps_saved(plain, *train([AHEAD], forecaster=str(pushed[name]))) for name in pushed})


def falls(plain: Sequence[float]) -> bool:
    """Whether the loss of a plain run falls in its second half by more than twice its greatest rise: else steps are noise.

    Args:
        plain: as for `steps_saved`.
    """
    rise = max(loss - lowest for loss, lowest in zip(plain, accumulate(plain, min), strict=True))
    return plain[len(plain) // 3] - plain[-1] > 2 * rise


def steps_saved(plain: Sequence[float], loss: float) -> float:
    """Share of its steps that a plain run would have saved, had it been at `loss` halfway; from -1 to 0.5.

    Args:
        plain: its losses at equal distances, from a quarter of it to its end. Where it is at `loss` more than once, what counts
            is nearest to halfway.
        loss: of the other run, halfway.
    """
    if not min(plain) <= loss <= max(plain):
        return 0.5 if loss < min(plain) else -1.0
    passed = [
        0.5 + 1.5 * (index + ((before - loss) / (before - after) if before != after else 0.0)) / (len(plain) - 1)
        for index, (before, after) in enumerate(pairwise(plain))
        if min(before, after) <= loss <= max(before, after)
    ]
    return 1 - 1 / min(passed, key=lambda at: abs(at - 1))


def _train(
    header: Mapping[str, Any], state: Tensor, judged_after: Sequence[int], *, interval: int, forecaster: str | None
) -> list[float]:
    """Go on from a state; the loss of averaged weights after so many intervals each."""
    network = Design.from_dict(header["design"]).build()
    nn.utils.vector_to_parameters(state.clone(), network.parameters())  # the parameters are views of it from now on
    betas = (header["beta1"], header["beta2"])
    optimizer = torch.optim.AdamW(network.parameters(), lr=header["lr"], weight_decay=header["weight_decay"], betas=betas)
    average = AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(1 - 1 / (MEMORY * interval)))  # type: ignore[no-untyped-call]
    feed, generator = _feed(header), torch.Generator().manual_seed(header["seed"])
    judged, losses = feed.take(generator, batch_size=EXAMPLES), []
    due = {count * interval for count in judged_after}
    options: dict[str, Any] = {"interval": interval, "push": Push(start=0, fade=1), "server": "embedded"}
    with Nowcast(network, optimizer, forecaster=forecaster, **options) if forecaster else nullcontext():
        for step in range(1, max(due) + 1):
            inputs, targets = feed.take(generator, batch_size=header["batch_size"])
            optimizer.zero_grad()
            loss_of(network(inputs[0]), targets[0]).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            average.update_parameters(network)
            if step in due:
                with torch.no_grad():
                    losses.append(float(loss_of(average(judged[0][0]), judged[1][0])))
    return losses


def _feed(header: Mapping[str, Any]) -> Feed:
    view = header.get("view")
    views = (View(**{**view, "classes": tuple(view["classes"])}),) if view else ()
    return feed_of(Design.from_dict(header["design"]), header["data"], size=header["size"], views=views, lanes=1)
