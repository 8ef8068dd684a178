"""Quiet contexts, snapshots that are averages over the steps before them, and averages to look at."""

import io
import threading
from typing import Any

import pytest
import torch
from small_runs import CONTEXT, WHOLE, ShiftingEndpoint, flat, network, step

from trainer_worker import BadArgument, FixedHorizon, Nowcast
from trainer_worker.weights.average import RunningAverage

INTERVAL = 4
PERIOD = INTERVAL * CONTEXT
STEPS = 2 * PERIOD + 5


class Run:
    """A deterministic run, its weights noted after each step."""

    def __init__(self, *, dtype: torch.dtype = torch.float32, **options: Any) -> None:
        self.model, self.endpoint = network(dtype=dtype), ShiftingEndpoint()
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-2)
        defaults = {"max_steps": 1000, "interval": INTERVAL, "context": CONTEXT, "policy": FixedHorizon(3), "jump": WHOLE}
        self.nowcast = Nowcast(self.model, self.optimizer, server=self.endpoint, **{**defaults, **options})
        self.weights: list[torch.Tensor] = []

    def train(self, steps: int, *, first: int = 0) -> None:
        for index in range(first, first + steps):
            step(self.model, self.optimizer, index)
            self.weights.append(flat(self.model))


@pytest.mark.parametrize("quiet", [1, 3, INTERVAL])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_quiet_snapshot_is_the_mean_of_the_steps_before_it(quiet: int, dtype: torch.dtype) -> None:
    """An average that lags, or that mixes in the weights before a jump, forecasts another run."""
    run = Run(quiet=quiet, dtype=dtype)
    with run.nowcast:
        run.train(STEPS)
    for after, sent in run.endpoint.sent.items():
        own = run.weights[after - quiet : after]
        if after % PERIOD == 0:  # the jump was made in the same step: undo it
            own = [*own[:-1], run.weights[after - 1] - torch.tensor(0.03, dtype=dtype)]
        tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype == torch.float32 else {"atol": 2e-3, "rtol": 1e-2}
        torch.testing.assert_close(sent, torch.stack(own).float().mean(0), **tolerance)
    assert len(run.endpoint.sent) > CONTEXT


def test_the_displacement_is_added_to_the_weights_as_they_are() -> None:
    """Loading the forecast itself would also jump back to the middle of the averaged steps."""
    plain, quiet = Run(quiet=0, max_steps=PERIOD), Run(quiet=INTERVAL)
    for run in (plain, quiet):
        with run.nowcast:
            run.train(PERIOD)
    torch.testing.assert_close(quiet.weights[-1] - plain.weights[-1], torch.full_like(plain.weights[-1], 0.03), atol=1e-6, rtol=0)


def test_no_average_spans_a_jump() -> None:
    """A forecast that arrives late would leave the weights from before it in the next context's first snapshot."""
    gate = threading.Event()
    run = Run(quiet=INTERVAL, overlap=True)
    run.endpoint.fail = lambda call: gate.wait() if call == "forecast" else None
    with run.nowcast:
        run.train(PERIOD + 1)
        pending = run.nowcast._cycle._candidates.pending
        assert pending is not None
        assert pending.request is not None
        gate.set()
        assert pending.request.done.wait(10)
        run.train(INTERVAL - 1, first=PERIOD + 1)
        assert [(event.step, event.outcome) for event in run.nowcast.events] == [(PERIOD, "accepted")]
    (sent,) = (snapshot for step, snapshot in run.nowcast.state_dict()["context"].items() if step == str(PERIOD + INTERVAL))
    torch.testing.assert_close(sent, torch.stack(run.weights[PERIOD + 1 :]).mean(0))


@pytest.mark.parametrize("stop", range(PERIOD - 3, PERIOD + 8))
def test_an_average_under_way_is_resumed(stop: int) -> None:
    """A preemption between two snapshots would otherwise shift the next one."""
    whole, first, second = Run(quiet=3), Run(quiet=3), Run(quiet=3)
    with whole.nowcast:
        whole.train(STEPS)
    with first.nowcast:
        first.train(stop)
        states = [thing.state_dict() for thing in (first.model, first.optimizer, first.nowcast)]
        file = io.BytesIO()
        torch.save(states, file)
    file.seek(0)
    for thing, state in zip((second.model, second.optimizer, second.nowcast), torch.load(file, weights_only=True), strict=True):
        thing.load_state_dict(state)
    with second.nowcast:
        second.train(STEPS - stop, first=stop)
    assert torch.equal(second.weights[-1], whole.weights[-1])
    with pytest.raises(BadArgument, match="quiet = 3"):
        Run(quiet=1).nowcast.load_state_dict(first.nowcast.state_dict())


def test_the_average_of_other_layers_is_not_gone_on_with() -> None:
    """A run that freezes a layer when it resumes would take the averages of one layer for those of the next."""
    layers = [torch.nn.Parameter(torch.full((2, 2), float(value))) for value in range(3)]
    average, fewer = RunningAverage(layers), RunningAverage(layers[1:])
    average.add()
    fewer.load_state_dict(average.state_dict())
    assert not fewer.means
    fewer.add()
    assert all(torch.equal(mean, layer) for layer, mean in fewer.means.items())


@pytest.mark.parametrize("quiet", [-1, INTERVAL + 1, 0.5])
def test_what_cannot_be_averaged_is_refused(quiet: Any) -> None:
    """A window longer than the interval would average into the last snapshot's."""
    with pytest.raises(BadArgument, match="from 0 to interval = 4"):
        Run(quiet=quiet)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_an_average_is_loaded_for_a_while(dtype: torch.dtype) -> None:
    """Weights that came back rounded would change the run that is looked at, and the average as well."""
    weights = [torch.nn.Parameter(torch.randn(7, dtype=dtype)), torch.randn(3, dtype=dtype)]
    average, seen = RunningAverage(weights), []
    for _ in range(5):
        for weight in weights:
            weight.data.add_(torch.randn_like(weight))
        seen.append([weight.detach().clone() for weight in weights])
        average.add()
    for _ in range(2):
        with average.loaded():
            for index, weight in enumerate(weights):
                mean = torch.stack([each[index].float() for each in seen]).mean(0)
                tolerance = {"atol": 1e-6, "rtol": 1e-5} if dtype != torch.bfloat16 else {"atol": 2e-2, "rtol": 1e-2}
                torch.testing.assert_close(weight.detach().float(), mean, **tolerance)
        assert all(torch.equal(weight, last) for weight, last in zip(weights, seen[-1], strict=True))
