"""What a run's forecasts were worth, from the worker's side: in this process and by a server."""

from collections import defaultdict
from statistics import mean
from typing import Any

import pytest
import torch
from server_process import ServerProcess
from small_runs import FIRST, FULL, INTERVAL, flat, learner, make, nowcasts, plain, settle, step
from waiting import until

from trainer_worker import Push
from trainer_worker.push import CONTEXT

STEPS = 4 * FULL
HORIZON = 3


def trained(server: str, **options: Any) -> tuple[dict[int, torch.Tensor], torch.Tensor, Any]:
    """The snapshots of a run, the weights at its end, and its nowcasts."""
    model, optimizer = learner()
    seen: dict[int, torch.Tensor] = {}
    with make(model, optimizer, server, forecaster="linear", max_steps=STEPS, push=Push(horizon=HORIZON), **options) as nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
            seen[index + 1] = flat(model)
            settle(nowcast)
            until(lambda: nowcast.in_flight == 0)
    return seen, flat(model), nowcast


def by_hand(seen: dict[int, torch.Tensor]) -> dict[str, Any]:
    """Skill by the formula, of the forecasts whose future came, in three intervals."""
    skills = defaultdict(list)
    for at in range(FULL, STEPS - HORIZON * INTERVAL + 1, INTERVAL):
        states = torch.stack([seen[each] for each in range(at - FULL + INTERVAL, at + 1, INTERVAL)])
        time = torch.arange(CONTEXT) - (CONTEXT - 1) / 2
        slope = (time[:, None] * states).sum(0) / time.square().sum()
        truth = seen[at + HORIZON * INTERVAL]
        unchanged = (states[-1] - truth).abs().sum()
        line = states.mean(0) + slope * (time[-1] + HORIZON)
        skills["linear"].append(float(1 - (line - truth).abs().sum() / unchanged))
        skills["average"].append(float(1 - (states.mean(0) - truth).abs().sum() / unchanged))
    return {str(HORIZON): pytest.approx({name: mean(values) for name, values in skills.items()}, abs=1e-3)}


@pytest.mark.parametrize("where", ["here", "server"])
@pytest.mark.parametrize(("mode", "outcome"), [("shadow", "scored"), ("glide", "glided")])
def test_forecasts_are_scored_by_what_the_run_became(
    server: ServerProcess, where: str, mode: str, outcome: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A forecaster that has gone wrong shows while the run goes on; a shadow, which is for nothing else, changes nothing."""
    caplog.set_level("INFO", "trainer_worker")
    seen, weights, nowcast = trained(server.url if where == "server" else "embedded", mode=mode)
    assert torch.equal(weights, plain(STEPS)) == (mode == "shadow")
    assert nowcasts(nowcast) == [(at, outcome, "") for at in range(FIRST, STEPS, INTERVAL)]
    assert nowcast.summary()["skill"] == by_hand(seen)
    assert ("forecasts scored; see summary()['skill']" in caplog.text) == (mode == "shadow")


def test_jumps_have_no_skill() -> None:
    """A jump makes a future of its own, which would be held against its forecast."""
    assert trained("embedded", mode="jump")[2].summary()["skill"] == {}
