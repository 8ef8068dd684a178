"""A run that is stopped and resumed."""

import io
from typing import Any

import pytest
import torch
from small_runs import CONTEXT, FIRST, FULL, INTERVAL, STEPS, TAKEN_UP, ScriptedEndpoint, adam, flat, make, network, nowcasts, step
from torch.distributed import checkpoint
from waiting import until

from trainer_worker import BadArgument, Push

JUMPS = {"mode": "jump", "interval": 1}


class Run:
    """A run with embedded forecasts that can be written to bytes and read; one that `turns` goes back once pushes begin."""

    def __init__(self, *, dtype: torch.dtype = torch.float32, turns: bool = False, **options: Any) -> None:
        self.turns = turns
        self.model = network(dtype=dtype)
        self.optimizer = adam(self.model)
        self.nowcast = make(self.model, self.optimizer, None, **{"forecaster": "linear", "push": Push(start=0), **options})
        self.index = 0

    def train(self, steps: int) -> None:
        for _ in range(steps):
            if self.turns and self.index >= FIRST:
                self.optimizer.param_groups[0]["lr"] = -1e-2
            step(self.model, self.optimizer, self.index)
            self.index += 1

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "index": self.index,
            "nowcast": self.nowcast.state_dict(),
        }

    def save(self) -> bytes:
        file = io.BytesIO()
        torch.save(self.state(), file)
        return file.getvalue()

    def load(self, data: bytes) -> None:
        state = torch.load(io.BytesIO(data), weights_only=True)
        self.nowcast.load_state_dict(state["nowcast"])  # in any order
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.index = state["index"]


def unbroken(**options: Any) -> Run:
    """A run that was never stopped."""
    run = Run(**options)
    with run.nowcast:
        run.train(STEPS)
    return run


def check_resumed(whole: Run, *, stop: int, entered: bool, **options: Any) -> None:
    first = Run(**options)
    with first.nowcast:
        first.train(stop)
        saved = first.save()
    second = Run(**options)
    if not entered:
        second.load(saved)
    with second.nowcast:
        if entered:
            second.load(saved)
        second.train(STEPS - stop)
    assert torch.equal(flat(second.model), flat(whole.model)), stop
    mine, theirs = second.nowcast.summary(), whole.nowcast.summary()
    assert all(mine[counted] == theirs[counted] for counted in ("steps", "nowcasts", "reasons")), stop
    assert mine["snapshots"]["taken"] == theirs["snapshots"]["taken"]
    assert nowcasts(second.nowcast) == nowcasts(whole.nowcast)


@pytest.mark.parametrize(
    ("options", "used"),
    [
        pytest.param({}, len(TAKEN_UP), id="glide"),
        pytest.param({"turns": True}, len(TAKEN_UP), id="braked"),
        pytest.param({"interval": 3}, 2, id="interval 3"),
        pytest.param({"dtype": torch.bfloat16}, len(TAKEN_UP), id="bfloat16"),
        pytest.param({"dtype": torch.float64}, len(TAKEN_UP), id="float64"),
        pytest.param(JUMPS, 4, id="jump"),
        pytest.param({"mode": "shadow"}, len(TAKEN_UP), id="shadow"),
    ],
)
def test_resumed_runs_end_in_the_same_bits(options: dict[str, Any], used: int) -> None:
    """A checkpoint that changes the run makes its results depend on where it was preempted."""
    whole = unbroken(**options)
    assert whole.nowcast.summary()["nowcasts"] == {"used": used, "skipped": 0}
    for stop in range(FULL - 1 if options else 0, STEPS, 4 if options else 1):
        check_resumed(whole, stop=stop, entered=bool(stop % 2), **options)


@pytest.mark.parametrize("options", [{"max_steps": FULL + INTERVAL}, {"max_steps": 30 * STEPS}, {"interval": 1}], ids=str)
def test_a_forecast_asked_for_by_a_run_of_another_length_is_let_be(options: dict[str, int]) -> None:
    """Pushes would be too long: by many times in shorter intervals; and 40 intervals' worth where the gain is 0 now, by the end."""
    first, second = Run(), Run(**options, push=Push())
    with first.nowcast:
        first.train(FULL)
        second.load(first.save())
    with second.nowcast:
        second.train(INTERVAL)
    assert second.nowcast.events == []


def test_a_run_can_go_back_to_an_earlier_checkpoint() -> None:
    """Elastic trainers reload a checkpoint into the process that went on after it, while forecasts are being made."""
    run = Run()
    with run.nowcast:
        run.train(FULL + 3)
        saved = run.save()
        run.train(STEPS - FULL - 3)
        after = flat(run.model)
        run.load(saved)
        run.train(STEPS - FULL - 3)
    assert torch.equal(flat(run.model), after)


def test_a_resumed_job_makes_the_server_forget() -> None:
    """Snapshots from before the checkpoint would contradict the ones that are taken again."""
    endpoint = ScriptedEndpoint()
    first = Run(server=endpoint)
    with first.nowcast:
        first.train(FULL + 1)
        saved = first.save()
        first.train(6)
        until(lambda: first.nowcast.in_flight == 0)
    assert max(endpoint.history) == FULL + 6
    second = Run(server=endpoint)
    second.load(saved)
    with second.nowcast:
        until(lambda: second.nowcast.in_flight == 0)
        assert sorted(endpoint.history) == list(range(INTERVAL, FULL + 1, INTERVAL))


@pytest.mark.parametrize("options", [{}, JUMPS, {"dtype": torch.bfloat16}], ids=["glide", "jump", "bfloat16"])
def test_a_state_goes_through_torchs_distributed_checkpoint(options: dict[str, Any], tmp_path: Any) -> None:
    """Accelerate, Lightning and torchtitan load into a fresh run's state: one of any step has to have its keys and shapes."""
    whole = unbroken(**options)
    for stop in (1, FULL - 3, FULL + 1, FULL + 5):
        first, second = Run(**options), Run(**options)
        with first.nowcast:
            first.train(stop)
            checkpoint.save({"run": first.state()}, checkpoint_id=tmp_path / str(stop), no_dist=True)
        step(second.model, second.optimizer, 0)  # so that the optimizer has a state to be loaded into
        state = {"run": second.state()}
        checkpoint.load(state, checkpoint_id=tmp_path / str(stop), no_dist=True)
        file = io.BytesIO()
        torch.save(state["run"], file)
        second.load(file.getvalue())
        with second.nowcast:
            second.train(STEPS - stop)
        assert torch.equal(flat(second.model), flat(whole.model)), stop


def test_a_push_under_way_goes_on_without_a_server() -> None:
    """It is all there: a server that is down costs the pushes that were not made yet."""
    whole, first = Run(server=(endpoint := ScriptedEndpoint())), Run(server=ScriptedEndpoint())
    with whole.nowcast, first.nowcast:
        whole.train(FULL + 2 * INTERVAL)
        first.train(FULL + INTERVAL + 1)
        saved = first.save()
    second = Run(server="http://127.0.0.1:9")
    second.load(saved)
    with second.nowcast:
        second.train(INTERVAL - 1)
    assert torch.equal(flat(second.model), flat(whole.model))
    assert len(endpoint.asked[0]) == CONTEXT


@pytest.mark.parametrize(("change", "word"), [({"version": 99}, "version"), ({}, "trains 178 weights; this one trains 34")])
def test_a_state_of_another_run_is_refused(change: dict[str, Any], word: str) -> None:
    """Weights would be pushed by what belongs to others, or the run end in a message about shapes."""
    run, other = Run(), Run()
    other.model[0].requires_grad_(False)
    small = make(other.model, other.optimizer, ScriptedEndpoint())
    with pytest.raises(BadArgument, match=word):
        small.load_state_dict({**run.nowcast.state_dict(), **change})
