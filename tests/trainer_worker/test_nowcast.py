"""`Nowcast` around a training loop: arguments, beginning and end, and whatever fails on the way."""

import gc
import logging
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from itertools import repeat
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import random_checkpoint
from pydantic import TypeAdapter
from pytorch_optimizer import MADGRAD, Lookahead
from small_runs import FIRST, STEPS, TAKEN_UP, Fails, ScriptedEndpoint, adam, flat, learner, make, network, plain, step, train
from torch import Tensor, nn
from waiting import until

from nowcast_server.nino.checkpoint import save_checkpoint
from protos.errors import BadRequest, Unavailable
from protos.messages import About, JobId
from protos.wiring import Parameter, Wiring
from trainer_worker import BadArgument, Event, Server
from trainer_worker.endpoints import sender
from trainer_worker.names import job_id
from trainer_worker.wiring import wire


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(*, fails: bool) -> None:
    """A hook or thread that outlives the block would count steps of the next run, or keep its memory."""
    (model, optimizer), endpoint = learner(), ScriptedEndpoint()
    threads = threading.active_count()
    with pytest.raises(KeyError) if fails else nullcontext(), make(model, optimizer, endpoint) as nowcast:
        step(model, optimizer, 0)
        nowcast.observe(torch.zeros((), device="meta"))  # as of a device that has failed: nobody can read it any more
        if fails:
            {}["the loop breaks"]
    step(model, optimizer, 1)
    nowcast.step()
    assert nowcast.steps == 1
    assert endpoint.closed
    assert threading.active_count() == threads


def test_a_nowcast_that_was_dropped_is_gone() -> None:
    """In a notebook a cell is run again: the first run's thread would go on, and its hook push the second run's weights."""
    model, optimizer = learner()
    threads = threading.active_count()
    nowcast = make(model, optimizer, ScriptedEndpoint()).start()
    step(model, optimizer, 0)
    gone = weakref.ref(nowcast)
    del nowcast
    gc.collect()
    assert gone() is None
    assert threading.active_count() == threads
    step(model, optimizer, 1)
    with make(model, optimizer, ScriptedEndpoint()) as second:
        step(model, optimizer, 2)
    assert second.steps == 1


def test_a_nowcast_may_be_collected_by_its_own_thread() -> None:
    """One that its own `on_event` refers to goes at any moment: a thread that waited for itself would leave its connection open."""
    dropped = threading.Event()
    endpoint = ScriptedEndpoint(fail=lambda call: call == "forecast" and dropped.wait(10) and gc.collect(), local=False)

    def run() -> None:
        model, optimizer = learner()
        nowcast = make(model, optimizer, endpoint, on_event=lambda _: nowcast.steps).start()
        train(model, optimizer, range(FIRST - 1))

    gc.disable()
    try:
        run()
        dropped.set()
        until(lambda: endpoint.closed, within_s=10)
    finally:
        gc.enable()


@pytest.mark.parametrize("shared", [True, False])
def test_a_model_belongs_to_the_nowcast_that_began_last(*, shared: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Two that move the same weights, be it in the steps of an optimizer each, would forecast from each other's pushes."""
    (model, optimizer), endpoint = learner(), ScriptedEndpoint()
    first = make(model, optimizer, endpoint, server=None, forecaster="last").start()
    with make(model, optimizer if shared else adam(model), endpoint) as second:
        step(model, optimizer, 0)
    assert (first.steps, second.steps) == (0, int(shared))
    assert "was still running; it was stopped" in caplog.text
    assert f"{first.job}: no optimizer step was counted" in caplog.text


def test_two_models_may_share_an_optimizer(caplog: pytest.LogCaptureFixture) -> None:
    """Of an encoder and a decoder that one optimizer trains, only the one wrapped last would be pushed."""
    one, other = network(), network()
    optimizer = torch.optim.Adam([*one.parameters(), *other.parameters()])
    with make(one, optimizer, ScriptedEndpoint()) as first, make(other, optimizer, ScriptedEndpoint()) as second:
        step(one, optimizer, 0)
    assert (first.steps, second.steps) == (1, 1)
    assert caplog.text.count(f"no forecast was used in 1 of {STEPS} steps: the first was due at step {FIRST}") == 2


@pytest.mark.parametrize("call", ["send", "forecast", "finish"])
def test_an_interrupted_run_ends_within_seconds(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C that hangs is answered with kill -9, which loses the checkpoint that was about to be written."""
    monkeypatch.setattr(sender, "STOP_S", 0.2)
    over = threading.Event()
    fails = Fails(**{call: [over]})
    model, optimizer = learner()
    nowcast = make(model, optimizer, ScriptedEndpoint(fail=fails, local=False)).start()
    train(model, optimizer, range(FIRST - 1))  # at the next step a forecast that has not begun would be given up
    if call != "finish":
        until(lambda: call in fails.begun)
    ending = time.monotonic()
    nowcast.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert time.monotonic() - ending < 3
    over.set()


def test_steps_may_be_counted_by_hand() -> None:
    """A loop that calls no optimizer's `step`, as with functional updates, would never be nowcast."""
    model, optimizer = learner()
    counted, stepped = ScriptedEndpoint(), ScriptedEndpoint()
    with make(model, optimizer, stepped):
        train(model, optimizer, range(STEPS))
    other = network()
    by_hand = adam(other)
    nowcast = make(other, by_hand, counted)
    with pytest.raises(RuntimeError, match="not started"):
        nowcast.step()  # an embedded forecast would be waited for without end: nobody is there to make it
    with nowcast:
        for handle in nowcast._handles:  # as if the loop called no `step` that is seen
            handle.remove()
        for index in range(STEPS):
            step(other, by_hand, index)
            nowcast.step()
    assert torch.equal(flat(other), flat(model))
    assert counted.asked == stepped.asked != []


def test_no_random_state_is_touched() -> None:
    """A run with nowcasts would see other batches and dropout masks than its plain twin, and nothing could be compared."""
    import random

    import numpy as np

    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    model, optimizer = learner()
    before = states()
    with make(model, optimizer, None, forecaster="nino"):
        train(model, optimizer, range(FIRST))
    with make(model, optimizer, "http://127.0.0.1:9") as down:
        step(model, optimizer, 0)
    assert down.summary()["server"]["lost"] == 1
    assert states() == before


@pytest.mark.parametrize(("error", "reason"), [(Unavailable("gone"), "server_unavailable"), (LookupError("bug"), "worker_error")])
@pytest.mark.parametrize("call", ["register", "send", "forecast", "finish"])
def test_no_failure_of_an_endpoint_reaches_the_loop(call: str, error: Exception, reason: str) -> None:
    """An exception out of `optimizer.step()` ends a training run of days."""
    (model, optimizer), endpoint = learner(), ScriptedEndpoint(fail=Fails(**{call: repeat(error)}))
    if call == "register" and reason == "worker_error":
        with pytest.raises(LookupError, match="bug"), make(model, optimizer, endpoint):
            pass  # at the start it is told, not swallowed
        return
    with make(model, optimizer, endpoint) as nowcast:
        train(model, optimizer, range(STEPS))
    summary = nowcast.summary()
    if call == "finish":
        assert summary["nowcasts"] == {"used": len(TAKEN_UP), "skipped": 0}
    else:
        assert summary["nowcasts"] == {"used": 0, "skipped": len(TAKEN_UP)}
        assert summary["reasons"] == {reason: len(TAKEN_UP)}
        assert torch.equal(flat(model), plain())


def test_events_are_told_on_the_training_thread_and_may_fail() -> None:
    """Loggers are not thread-safe, and a broken one must not end the run."""
    told: list[tuple[Event, bool]] = []

    def on_event(event: Event) -> None:
        told.append((event, threading.current_thread() is threading.main_thread()))
        raise ValueError

    model, optimizer = learner()
    with make(model, optimizer, "http://127.0.0.1:9", on_event=on_event) as nowcast:
        train(model, optimizer, range(FIRST))
    assert [(event.kind, event.outcome) for event, _ in told] == [("server", "lost"), ("nowcast", "skipped")]
    assert all(main for _, main in told)
    assert [event for event, _ in told] == nowcast.events


def test_wrapped_models_are_unwrapped() -> None:
    """Names with `module.` or `_orig_mod.` would not fit the wiring, and the push would not reach the weights."""
    model, endpoint = network(), ScriptedEndpoint()
    wrapped = torch.compile(nn.DataParallel(model), backend="eager")
    optimizer = adam(model)
    with make(wrapped, optimizer, endpoint) as nowcast:
        for index in range(STEPS):
            step(wrapped, optimizer, index)
    assert [parameter.name for parameter in endpoint.spec.wiring.parameters] == [name for name, _ in model.named_parameters()]
    assert [(event.step, event.outcome) for event in nowcast.events] == [(at, "glided") for at in TAKEN_UP]


def _mistakes() -> list[Any]:
    model = network()
    wiring = wire(model)
    renamed = Wiring((Parameter("x", (16, 8)), *wiring.parameters[1:]), wiring.neurons, wiring.blocks)
    lbfgs = type("FullBatchLBFGS", (torch.optim.SGD,), {})(model.parameters())  # somebody's own
    inside = Lookahead(MADGRAD(list(model.parameters())))
    return [
        pytest.param("model", {"model": nn.Linear(2, 2, device="meta")}, "meta", id="meta"),
        pytest.param("model", {"model": (lazy := nn.Sequential(nn.LazyLinear(2))), "optimizer": adam(lazy)}, "lazy", id="lazy"),
        pytest.param("model", {"model": list(model.parameters()), "optimizer": adam(model)}, "nn.Module", id="no model"),
        pytest.param("optimizer", {"model": nn.Linear(2, 2, dtype=torch.complex64)}, "can be forecast", id="complex"),
        pytest.param("optimizer", {"model": nn.ReLU(), "optimizer": adam(model)}, "holds no trainable", id="empty"),
        pytest.param("optimizer", {"optimizer": adam(network())}, "holds no trainable", id="other optimizer"),
        pytest.param("optimizer", {"optimizer": "adam"}, "torch.optim.Optimizer", id="no optimizer"),
        pytest.param("optimizer", {"optimizer": []}, "empty", id="no optimizers"),
        pytest.param("optimizer", {"model": model, "optimizer": lbfgs}, "FullBatchLBFGS cannot be nowcast", id="LBFGS"),
        pytest.param("optimizer", {"model": model, "optimizer": inside}, "MADGRAD cannot be nowcast", id="MADGRAD in Lookahead"),
        pytest.param("interval", {"interval": 0}, "positive", id="interval 0"),
        pytest.param("interval", {"interval": 2.5}, "positive integer", id="interval 2.5"),
        pytest.param("max_steps", {"max_steps": -1}, "positive", id="max_steps"),
        pytest.param("max_steps", {"max_steps": 2**48}, "below", id="endless"),
        pytest.param("mode", {"mode": "leap"}, "glide, jump or shadow", id="mode"),
        pytest.param("push", {"push": 0.5}, "a Push", id="push"),
        pytest.param("forecaster", {"server": None, "forecaster": "nina"}, "nina", id="forecaster"),
        pytest.param("forecaster", {"server": None, "forecaster": Path("/nowhere")}, "cannot read the checkpoint", id="file"),
        pytest.param("forecaster", {"server": "http://localhost:8440", "forecaster": "x.pt"}, "is a file", id="file and server"),
        pytest.param("server", {"server": "localhost:8440"}, "http://", id="server"),
        pytest.param("server", {"server": 8440}, "a URL", id="server's port"),
        pytest.param("wiring", {"wiring": wire(nn.Linear(2, 2))}, "has", id="wiring of another model"),
        pytest.param("wiring", {"wiring": "x"}, "what wire", id="no wiring"),
        pytest.param("wiring", {"wiring": renamed}, "'x'", id="wiring with another name"),
        pytest.param("on_event", {"on_event": 3}, "must be a function", id="on_event"),
    ]


@pytest.mark.parametrize(("argument", "options", "word"), _mistakes())
def test_mistakes_are_named_at_once(argument: str, options: dict[str, Any], word: str) -> None:
    """A mistake that shows only at the first push costs the user the first thousand steps."""
    given = dict(options)
    model = given.pop("model", None) or network()
    optimizer = given.pop("optimizer", None)
    optimizer = adam(model) if optimizer is None else optimizer
    with pytest.raises(BadArgument, match=word, check=lambda error: error.argument == argument):
        make(model, optimizer, given.pop("server", ScriptedEndpoint()), **given)


def test_a_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped weights would be called no checkpoint, where a package is not installed that reads them."""
    monkeypatch.setitem(sys.modules, "safetensors", None)
    model = network()
    with pytest.raises(BadArgument, match=r"need the extra nowcast-train\[embedded\]"):
        make(model, adam(model), None, forecaster="nino")


@pytest.mark.parametrize(
    ("argument", "options"), [("timeout_s", {"timeout_s": 0}), ("dtype", {"dtype": "float8"}), ("job", {"job": "../etc"})]
)
def test_mistakes_about_a_server_are_named_at_once(argument: str, options: dict[str, Any]) -> None:
    """The same, of what belongs to a server."""
    with pytest.raises(BadArgument, check=lambda error: error.argument == argument):
        Server("http://localhost:8440", **options)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        out: Tensor = self.out(torch.relu(self.first(batch["left"]) + self.second(batch["right"])))
        return out


def test_example_inputs_reach_the_wiring() -> None:
    """What `forward` takes cannot always be guessed, and a model wired without it is a heap of unconnected layers."""
    model, endpoint = TwoInputs(), ScriptedEndpoint()
    inputs = ({"left": torch.zeros(1, 4), "right": torch.zeros(1, 3)},)
    with make(model, adam(model), endpoint, example_inputs=inputs):
        pass
    assert endpoint.spec.wiring == wire(model, inputs)
    assert endpoint.spec.wiring != wire(model)


def test_a_poor_wiring_is_warned_of_where_forecasts_need_it(caplog: pytest.LogCaptureFixture) -> None:
    """Users of the default would look for inputs that change nothing; those of a graph network would not."""
    for forecaster, warnings in (("spectral", 0), ("nino", 1)):
        make(model := TwoInputs(), adam(model), ScriptedEndpoint(), forecaster=forecaster)
        assert caplog.text.count("wired into the network") == warnings


@pytest.mark.parametrize("forecaster", ["linear", "wnn", "nino"])
@pytest.mark.parametrize(
    ("set_default", "usual", "default"),
    [
        (torch.set_default_dtype, torch.float32, torch.float64),
        (torch.set_default_dtype, torch.float32, torch.bfloat16),
        pytest.param(
            torch.set_default_device, None, "meta", marks=pytest.mark.skipif(torch.__version__ < "2.13", reason="Adam's step")
        ),
    ],
    ids=["float64", "bfloat16", "device"],
)
def test_whatever_torchs_defaults(forecaster: str, set_default: Callable[[Any], None], usual: Any, default: Any) -> None:
    """A script that sets one would train without nowcasts, be pushed by rounded forecasts, or not begin on a GPU."""
    pushed = []
    for value in (usual, default):
        model, optimizer = learner()
        try:
            set_default(value)
            with make(model, optimizer, None, forecaster=forecaster) as nowcast:
                for index in range(FIRST + 1):
                    drawn = torch.Generator("cpu").manual_seed(index)
                    inputs = torch.randn(8, 8, generator=drawn, dtype=torch.float32, device="cpu")
                    optimizer.zero_grad()
                    model(inputs).square().mean().backward()
                    optimizer.step()
                state = nowcast.state_dict()
        finally:
            set_default(usual)
        assert [(event.step, event.outcome) for event in nowcast.events] == [(FIRST, "glided")]
        pushed.append(flat(model))
        make(*learner(), None, forecaster=forecaster).load_state_dict(state)  # from the host, where all of it is
    assert torch.equal(*pushed)


def test_a_network_beyond_the_forecaster_is_refused(tmp_path: Path) -> None:
    """The run would be told so at its first nowcast, and at every other."""
    save_checkpoint(random_checkpoint(slots=1), tmp_path / "single.safetensors")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 1))
    with pytest.raises(BadArgument, match="up to 9 weights", check=lambda error: error.argument == "wiring"):
        make(model, adam(model), None, forecaster=str(tmp_path / "single.safetensors"))


def test_a_file_that_is_no_checkpoint_is_named_as_the_argument(tmp_path: Path) -> None:
    """The user would be told of an argument `edge_type_embedding.weight`, which `Nowcast` does not have."""
    model = network()
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    with pytest.raises(BadArgument, match=r"mine\.pt", check=lambda error: error.argument == "forecaster"):
        make(model, adam(model), None, forecaster=str(tmp_path / "mine.pt"))


@pytest.mark.parametrize("refusals", [[], [BadRequest("no")]], ids=["ended well", "refused"])
def test_a_nowcast_is_entered_once(refusals: list[Exception]) -> None:
    """Its sender has ended: an endpoint in this process would be waited for without end."""
    model, optimizer = learner()
    nowcast = make(model, optimizer, ScriptedEndpoint(fail=Fails(register=refusals)))
    with pytest.raises(BadArgument) if refusals else nullcontext(), nowcast:
        step(model, optimizer, 0)
    with pytest.raises(RuntimeError, match="make a new one"), nowcast:
        pass


def test_what_a_job_says_of_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's page could not tell runs apart, or link to where they run; or would hold links that run scripts."""
    torch.manual_seed(3)
    (model, optimizer), endpoint = learner(), ScriptedEndpoint()
    monkeypatch.setenv("NOWCAST_LINK", "http://head:8265/#/jobs/fm-1")
    make(model, optimizer, endpoint).start().stop()
    rate = optimizer.param_groups[0]["lr"]
    assert endpoint.spec.about == About(lr=rate, seed=torch.initial_seed(), link="http://head:8265/#/jobs/fm-1")
    monkeypatch.setenv("NOWCAST_LINK", "javascript:alert(1)")
    with pytest.raises(BadArgument, match="NOWCAST_LINK"):
        make(model, optimizer, endpoint)


@pytest.mark.parametrize("submission", ["my run", "größe", "実験", "-x-", "", "a" * 90])
def test_any_name_makes_an_id_that_servers_take(submission: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every `Nowcast` of a submission or results folder with such a name would be refused."""
    monkeypatch.setenv("NOWCAST_JOB", submission)
    for job in (Server().new_job(), job_id(submission), job_id(submission, "adam+" + "forecaster" * 9, str(2**32 - 1))):
        assert TypeAdapter(JobId).validate_python(job) == job


def test_the_summary_counts_everything(caplog: pytest.LogCaptureFixture) -> None:
    """It is all that a user sees of a run; and the log tells no more than one line of a trouble that lasts."""
    bad = iter([False, True, True, False, True, False])

    def forecast(states: Sequence[Tensor], horizon: int) -> Tensor:
        return states[-1] * (torch.nan if next(bad) else 1.0) + (states[-1] - states[0])

    model, optimizer = learner()
    caplog.set_level(logging.INFO, "trainer_worker")
    with make(model, optimizer, ScriptedEndpoint(forecast)) as nowcast:
        train(model, optimizer, range(STEPS))
        until(lambda: nowcast.in_flight == 0)
    summary = nowcast.summary()
    assert summary["nowcasts"] == {"used": 3, "skipped": 3}
    assert summary["reasons"] == {"bad_forecast": 3}
    assert summary["snapshots"] == {"taken": 11, "sent": 11, "dropped": 0}
    assert (summary["steps"], summary["interval"], summary["parameters"]) == (STEPS, 2, 178)
    assert caplog.text.count("skipped (bad_forecast") == 2  # of the first of each row
    assert f"{STEPS} steps, 3 forecasts used, 3 skipped (3 bad_forecast); to see what they saved" in caplog.text
