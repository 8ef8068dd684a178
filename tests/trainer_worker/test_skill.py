"""What a run's forecasts were worth, from the worker's side: in this process and by a server, shadowed and undone."""

from collections import defaultdict
from collections.abc import Callable
from statistics import mean
from typing import Any

import pytest
import torch
from server_process import ServerProcess
from small_runs import CONTEXT, INTERVAL, PERIOD, flat, network, step
from waiting import until

from trainer_worker import FixedHorizon, Guard, Nowcast

STEPS = 4 * PERIOD
HORIZON = 3


def trained(server: str | None, **options: Any) -> tuple[dict[int, torch.Tensor], dict[str, Any]]:
    """The weights every `INTERVAL` steps, and the summary."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    defaults = {"max_steps": STEPS, "interval": INTERVAL, "context": CONTEXT, "policy": FixedHorizon(HORIZON)}
    seen: dict[int, torch.Tensor] = {}
    optimizer.register_step_post_hook(lambda *_: seen.update({len(seen) + 1: flat(model)}))  # before any jump of the step
    nowcast = Nowcast(model, optimizer, server=server or "embedded", forecaster="linear", **{**defaults, **options})
    with nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
            pending = nowcast._cycle._candidates.pending
            if pending is not None and pending.request is not None:
                assert pending.request.done.wait(10)  # else a busy machine skips it
            until(lambda: nowcast.in_flight == 0)
    return seen, nowcast.summary()


def by_hand(seen: dict[int, torch.Tensor], made: dict[int, int]) -> dict[str, Any]:
    """Skill by the formula; `made` gives for the step of each nowcast the step its future came at."""
    skills = defaultdict(list)
    for at, comes in made.items():
        states = torch.stack([seen[each] for each in range(at - PERIOD + INTERVAL, at + 1, INTERVAL)])
        time = torch.arange(CONTEXT) - (CONTEXT - 1) / 2
        slope = (time[:, None] * states).sum(0) / time.square().sum()
        truth = seen[comes]
        unchanged = (states[-1] - truth).abs().sum()
        line = states.mean(0) + slope * (time[-1] + HORIZON)
        skills["linear"].append(float(1 - (line - truth).abs().sum() / unchanged))
        skills["average"].append(float(1 - (states.mean(0) - truth).abs().sum() / unchanged))
    return {str(HORIZON): pytest.approx({name: mean(values) for name, values in skills.items()}, abs=1e-4)}


@pytest.fixture(scope="module")
def server(start_server: Callable[..., ServerProcess]) -> ServerProcess:
    return start_server()


@pytest.mark.parametrize("where", ["here", "server"])
def test_shadow_mode_tells_what_forecasts_are_worth(server: ServerProcess, where: str) -> None:
    """The one thing it is for."""
    seen, summary = trained(server.url if where == "server" else None, shadow=True)
    assert summary["reasons"] == {"shadow": 3}
    assert summary["skill"] == by_hand(seen, {at: at + HORIZON * INTERVAL for at in (PERIOD, 2 * PERIOD, 3 * PERIOD)})


@pytest.mark.parametrize("where", ["here", "server"])
def test_undone_jumps_are_scored_and_those_that_stay_are_not(server: ServerProcess, where: str) -> None:
    """Steps that were undone are no future; and a run after a jump is not the future that was forecast."""
    recovery = 4
    losses = iter([1.0] * 12 + [9.0] * 100)  # worse at some point after the jump
    options = {"probe": lambda: next(losses), "guard": Guard(recovery=recovery, budget=0.0)}
    seen, summary = trained(server.url if where == "server" else None, **options)
    assert summary["nowcasts"]["rejected"] == 1
    assert 0 < summary["cost_steps"] <= recovery
    assert summary["skill"] == by_hand(seen, {PERIOD: PERIOD + HORIZON * INTERVAL + summary["cost_steps"]})
    assert trained(server.url if where == "server" else None)[1]["skill"] == {}
