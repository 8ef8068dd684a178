"""`Nowcast` around a training loop, with endpoints in this process."""

import threading
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from small_runs import CONTEXT, INTERVAL, PERIOD, WHOLE, ShiftingEndpoint, flat, network, step
from torch import nn

from nowcast_server.nino.checkpoint import Checkpoint, save_checkpoint
from nowcast_server.nino.options import ModelOptions, tensor_shapes
from protos.errors import BadRequest, Unavailable
from protos.wiring import Parameter, Wiring
from trainer_worker import AdaptiveHorizon, BadArgument, BestAfterRecovery, Event, FixedHorizon, Guard, Jump, Nowcast, PaperSchedule
from trainer_worker.wiring import wire

STEPS = 3 * PERIOD


def make(model: nn.Module, optimizer: torch.optim.Optimizer, endpoint: Any, **options: Any) -> Nowcast:
    timing = {"max_steps": STEPS, "interval": INTERVAL, "context": CONTEXT}
    defaults = {**timing, "server": endpoint, "policy": FixedHorizon(3), "jump": WHOLE}
    return Nowcast(model, optimizer, **{**defaults, **options})


def adam(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(model.parameters(), lr=1e-2)


def test_a_jump_loads_exactly_the_forecast_and_begins_a_new_context() -> None:
    """Weights other than the forecast's, or snapshots at other steps, would make every figure of the project wrong."""
    model, endpoint = network(), ShiftingEndpoint()
    optimizer = adam(model)
    seen = []
    with make(model, optimizer, endpoint) as nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
            seen.append(flat(model))
    assert sorted(endpoint.sent) == list(range(INTERVAL, 2 * PERIOD + 1, INTERVAL))  # none for a nowcast that will not be
    for after in (INTERVAL, PERIOD + INTERVAL):
        assert torch.equal(endpoint.sent[after], seen[after - 1])
    for after in (PERIOD, 2 * PERIOD):
        assert torch.equal(seen[after - 1], endpoint.sent[after] + 0.01 * 3)
    assert endpoint.asked == [(PERIOD, (3,)), (2 * PERIOD, (3,))]
    assert [(event.step, event.outcome, event.horizon) for event in nowcast.events] == [
        (PERIOD, "accepted", 3),
        (2 * PERIOD, "accepted", 3),
    ]
    assert [outcome.outcome for outcome in endpoint.outcomes] == ["accepted", "accepted"]
    assert nowcast.step == STEPS


@pytest.mark.parametrize("options", [{}, {"overlap": True}, {"shadow": True}])
def test_there_is_no_nowcast_on_the_last_step_or_after_it(options: dict[str, Any]) -> None:
    """It would leave the run with the spike that no step repairs, whatever the policy; a loop may go on for longer than it said."""
    model, endpoint = network(), ShiftingEndpoint()
    optimizer = adam(model)
    with make(model, optimizer, endpoint, **options) as nowcast:
        for index in range(2 * STEPS):
            step(model, optimizer, index)
    assert max(step for step, _ in endpoint.asked) == STEPS - PERIOD
    assert max(event.step for event in nowcast.events if event.kind == "nowcast") == STEPS - PERIOD


def test_parameters_stay_the_same_tensors_and_moments_are_kept() -> None:
    """Replaced tensors would leave optimizer, DDP and compiled graphs training weights that nobody uses."""
    model, endpoint = network(), ShiftingEndpoint()
    optimizer = adam(model)
    pointers = [parameter.data_ptr() for parameter in model.parameters()]
    with make(model, optimizer, endpoint):
        for index in range(PERIOD - 1):
            step(model, optimizer, index)
        versions = [parameter._version for parameter in model.parameters()]
        step(model, optimizer, PERIOD - 1)
        moments = [optimizer.state[parameter]["exp_avg"].clone() for parameter in model.parameters()]
    plain = network()
    other = adam(plain)
    for index in range(PERIOD):
        step(plain, other, index)
    assert [parameter.data_ptr() for parameter in model.parameters()] == pointers
    assert all(parameter._version > version for parameter, version in zip(model.parameters(), versions, strict=True))
    for parameter, moment in zip(plain.parameters(), moments, strict=True):
        assert torch.equal(other.state[parameter]["exp_avg"], moment)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_is_left_behind(*, fails: bool) -> None:
    """A hook or thread that outlives the block would count steps of the next run, or keep its memory."""
    model, endpoint = network(), ShiftingEndpoint()
    optimizer = adam(model)
    threads = threading.active_count()
    with pytest.raises(KeyError) if fails else nullcontext(), make(model, optimizer, endpoint) as nowcast:
        step(model, optimizer, 0)
        if fails:
            {}["the loop breaks"]
    step(model, optimizer, 1)
    assert nowcast.step == 1
    assert endpoint.closed
    assert threading.active_count() == threads
    with make(model, optimizer, ShiftingEndpoint()):  # its parameters are free again
        pass


def test_no_random_state_is_touched() -> None:
    """A run with nowcasts would see other batches and dropout masks than its plain twin, and nothing could be compared."""
    import random

    import numpy as np

    def states() -> tuple[Any, ...]:
        return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    model = network()
    optimizer = adam(model)
    before = states()
    with make(model, optimizer, None, forecaster="linear"):
        for index in range(PERIOD):
            step(model, optimizer, index)
    down = Nowcast(model, optimizer, server="http://127.0.0.1:9", max_steps=STEPS, interval=INTERVAL)
    with down:
        step(model, optimizer, 0)
    assert down.summary()["server"]["lost"] == 1
    assert states() == before


class OwnError(Exception):
    """Not one of the protocol's."""


@pytest.mark.parametrize(("error", "reason"), [(Unavailable("gone"), "server_unavailable"), (OwnError("bug"), "worker_error")])
@pytest.mark.parametrize("call", ["register", "send", "forecast", "report"])
def test_no_failure_of_an_endpoint_reaches_the_loop(call: str, error: Exception, reason: str) -> None:
    """An exception out of `optimizer.step()` ends a training run of days."""

    def fail(name: str) -> None:
        if name == call:
            raise error

    model, endpoint = network(), ShiftingEndpoint(fail=fail)
    optimizer = adam(model)
    if call == "register" and reason == "worker_error":
        with pytest.raises(OwnError), make(model, optimizer, endpoint):
            pass  # at the start it is told, not swallowed
        return
    with make(model, optimizer, endpoint) as nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
    summary = nowcast.summary()
    if call == "report":
        assert summary["nowcasts"] == {"accepted": 2, "rejected": 0, "skipped": 0} or reason == "server_unavailable"
    else:
        assert summary["nowcasts"] == {"accepted": 0, "rejected": 0, "skipped": 2}
        assert summary["reasons"] == {reason: 2}
        plain = network()
        other = adam(plain)
        for index in range(STEPS):
            step(plain, other, index)
        assert torch.equal(flat(model), flat(plain))


def test_forecasts_that_are_not_finite_are_never_loaded() -> None:
    """One NaN in the weights ends a run."""
    model, endpoint = network(), ShiftingEndpoint(shift=float("inf"))
    optimizer = adam(model)
    with make(model, optimizer, endpoint) as nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
    assert nowcast.summary()["reasons"] == {"bad_forecast": 2}
    assert flat(model).isfinite().all()


@pytest.mark.parametrize(
    ("dtype", "forecast"), [(torch.float16, 1e5), (torch.float16, -1e5), (torch.float32, 1e-44), (torch.bfloat16, -1e-44)]
)
def test_forecasts_that_would_not_be_finite_as_weights_are_never_loaded(dtype: torch.dtype, forecast: float) -> None:
    """What float32 holds is more than float16 does; and brought back to its norm, a tensor of next to nothing is NaN."""

    class Flat(ShiftingEndpoint):
        def forecast(self, step: int, horizons: tuple[int, ...], out: torch.Tensor, *, deadline: Any) -> None:
            out.fill_(forecast)

    model = network(dtype=dtype)
    with make(model, optimizer := torch.optim.SGD(model.parameters(), lr=1e-3), Flat(), jump=Jump()) as nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
    assert nowcast.summary()["reasons"] == {"bad_forecast": 2}
    assert flat(model).isfinite().all()


def test_where_nothing_is_tried_the_first_of_several_forecasts_is_loaded() -> None:
    """The policy's first choice has to be the one that is loaded and reported; others would be computed for nobody."""

    class Several:
        furthest = 9

        def horizons(self, step: int) -> tuple[int, ...]:
            return (9, 1, 4) if step == PERIOD else ()

    model, endpoint = network(), ShiftingEndpoint()
    optimizer = adam(model)
    with make(model, optimizer, endpoint, policy=Several()) as nowcast:
        for index in range(PERIOD):
            step(model, optimizer, index)
    assert endpoint.asked == [(PERIOD, (9,))]
    assert torch.equal(flat(model), endpoint.sent[PERIOD] + 0.01 * 9)
    assert [event.horizon for event in nowcast.events] == [9]


def test_events_are_told_on_the_training_thread_and_may_fail() -> None:
    """Loggers are not thread-safe, and a broken one must not end the run."""
    told: list[tuple[Event, bool]] = []

    def on_event(event: Event) -> None:
        told.append((event, threading.current_thread() is threading.main_thread()))
        raise ValueError

    model = network()
    optimizer = adam(model)
    with make(model, optimizer, "http://127.0.0.1:9", on_event=on_event) as nowcast:
        for index in range(PERIOD):
            step(model, optimizer, index)
    assert [(event.kind, event.outcome) for event, _ in told] == [("server", "lost"), ("nowcast", "skipped")]
    assert all(main for _, main in told)
    assert [event for event, _ in told] == nowcast.events


def test_frozen_tied_and_foreign_parameters() -> None:
    """A jump that moves a frozen weight breaks fine-tuning; one that forgets a tied name shifts every later parameter."""
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 2))
    model[2].weight = model[0].weight
    model[0].bias.requires_grad_(False)
    other = torch.optim.SGD([model[3].weight], lr=0.1)
    optimizer = torch.optim.SGD(
        [{"params": [model[0].weight], "lr": 0.1}, {"params": [model[0].bias, model[2].bias, model[3].bias]}], lr=0.01
    )
    endpoint = ShiftingEndpoint()
    frozen, foreign = model[0].bias.clone(), model[3].weight.detach().clone()
    with make(model, optimizer, endpoint):
        for index in range(PERIOD):
            step(model, optimizer, index)
    assert other.param_groups
    assert endpoint.sent[PERIOD].numel() == sum(parameter.numel() for parameter in model.parameters())
    assert torch.equal(model[0].bias, frozen)
    assert torch.equal(model[3].weight, foreign)
    moved = endpoint.sent[PERIOD] + 0.03
    assert torch.equal(model[0].weight.detach().reshape(-1), moved[:64])
    assert torch.equal(model[2].bias.detach(), moved[72:80])
    assert model[2].weight is model[0].weight


@pytest.mark.parametrize("model_dtype", ["float32", "float64", "bfloat16"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_rounded_snapshots_do_not_round_the_weights(model_dtype: str, dtype: Any) -> None:
    """Sending 16 bits must not cost a float32 run the lower half of its weights."""
    model = network(dtype=getattr(torch, model_dtype))
    endpoint = ShiftingEndpoint(shift=0.0)  # forecasts no change
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with make(model, optimizer, endpoint, dtype=dtype):
        for index in range(PERIOD - 1):
            step(model, optimizer, index)
        plain = network(dtype=getattr(torch, model_dtype))
        plain.load_state_dict(model.state_dict())
        step(plain, torch.optim.SGD(plain.parameters(), lr=0.1), PERIOD - 1)
        step(model, optimizer, PERIOD - 1)
    assert endpoint.sent[PERIOD].dtype == getattr(torch, dtype)
    assert torch.equal(flat(model), flat(plain))


def test_wrapped_models_are_unwrapped() -> None:
    """Names with `module.` or `_orig_mod.` would not fit the wiring, and the jump would not reach the weights."""
    model, endpoint = network(), ShiftingEndpoint()
    wrapped = torch.compile(nn.DataParallel(model), backend="eager")
    optimizer = adam(model)
    with make(wrapped, optimizer, endpoint):
        for index in range(PERIOD):
            step(wrapped, optimizer, index)
    assert [parameter.name for parameter in endpoint.spec.wiring.parameters] == [name for name, _ in model.named_parameters()]
    assert torch.equal(flat(model), endpoint.sent[PERIOD] + 0.03)


def test_a_sender_that_falls_behind_is_not_waited_for() -> None:
    """A slow network must cost nowcasts, never training time or memory."""
    release = threading.Event()

    def fail(name: str) -> None:
        if name == "send":
            release.wait()

    model, endpoint = network(), ShiftingEndpoint(fail=fail)
    optimizer = adam(model)
    with make(model, optimizer, endpoint, timeout_s=0.05) as nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
        release.set()
    summary = nowcast.summary()
    assert summary["nowcasts"]["skipped"] == 2
    assert summary["reasons"] == {"timeout": 2}
    assert summary["snapshots"]["dropped"] == 0  # there is room for a context, and for one snapshot on its way
    assert summary["waited_s"] < 2.5


class Lazy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.LazyLinear(2)


def _mistakes() -> list[Any]:
    model = network()
    wiring = wire(model)
    renamed = Wiring((Parameter("x", (16, 8)), *wiring.parameters[1:]), wiring.neurons, wiring.blocks)
    return [
        pytest.param("model", {"model": nn.Linear(2, 2, device="meta")}, "meta", id="meta"),
        pytest.param("model", {"model": Lazy(), "optimizer": adam(model)}, "lazy", id="lazy"),
        pytest.param("model", {"model": nn.Linear(2, 2, dtype=torch.complex64)}, "complex64", id="complex"),
        pytest.param("model", {"model": nn.ReLU(), "optimizer": adam(model)}, "no parameters", id="empty"),
        pytest.param("optimizer", {"optimizer": adam(network())}, "holds no trainable", id="other optimizer"),
        pytest.param("optimizer", {"optimizer": "adam"}, "torch.optim.Optimizer", id="no optimizer"),
        pytest.param("interval", {"interval": 0}, "positive", id="interval 0"),
        pytest.param("interval", {"interval": 2.5}, "positive integer", id="interval 2.5"),
        pytest.param("context", {"context": 1}, "2", id="context 1"),
        pytest.param("max_steps", {"max_steps": -1}, "positive", id="max_steps"),
        pytest.param("timeout_s", {"timeout_s": 0}, "positive", id="timeout"),
        pytest.param("dtype", {"dtype": "float8"}, "float8", id="dtype"),
        pytest.param("quiet", {"quiet": 3}, "from 0 to interval = 2", id="quiet"),
        pytest.param("policy", {"policy": PaperSchedule(STEPS, 7)}, "every 7 steps; here there is one every 10", id="period"),
        pytest.param("policy", {"policy": BestAfterRecovery(PaperSchedule(STEPS, 7)), "guard": Guard()}, "every 7", id="wrapped"),
        pytest.param("policy", {"policy": AdaptiveHorizon()}, "give probe= or guard=", id="nothing to learn from"),
        pytest.param("policy", {"policy": BestAfterRecovery(FixedHorizon(8))}, "give probe= or guard=", id="nothing to compare by"),
        pytest.param("policy", {"policy": FixedHorizon(10_001)}, "10001; .* from 1 to 10000", id="no such horizon"),
        pytest.param("policy", {"policy": PaperSchedule(STEPS, PERIOD, furthest=0)}, "horizon 0", id="no way ahead"),
        pytest.param("forecaster", {"server": None, "forecaster": "nina"}, "nina", id="forecaster"),
        pytest.param("checkpoint", {"server": None, "forecaster": "nino", "checkpoint": "/nowhere.pt"}, "nowhere", id="checkpoint"),
        pytest.param("server", {"server": "localhost:8440"}, "http://", id="server"),
        pytest.param("checkpoint", {"server": "http://localhost:8440", "checkpoint": "x.pt"}, "server", id="checkpoint and server"),
        pytest.param("job", {"job": "../etc"}, "letters", id="job"),
        pytest.param("wiring", {"wiring": wire(nn.Linear(2, 2))}, "has", id="wiring of another model"),
        pytest.param("wiring", {"wiring": "x"}, "what wire", id="no wiring"),
        pytest.param("model", {"model": list(model.parameters()), "optimizer": adam(model)}, "nn.Module", id="no model"),
        pytest.param("policy", {"policy": 4}, "FixedHorizon", id="policy 4"),
        pytest.param("policy", {"policy": FixedHorizon}, "FixedHorizon", id="policy class"),
        pytest.param("jump", {"jump": "all"}, "Jump", id="jump"),
        pytest.param("guard", {"guard": 0.3}, "Guard", id="guard"),
        pytest.param("probe", {"probe": 1000}, "must be a function, not 1000", id="probe"),
        pytest.param("on_event", {"on_event": 3}, "must be a function", id="on_event"),
        pytest.param("server", {"server": 8440}, "http://", id="server's port"),
        pytest.param("wiring", {"wiring": renamed}, "'x'", id="wiring with another name"),
    ]


@pytest.mark.parametrize(("argument", "options", "word"), _mistakes())
def test_mistakes_are_named_at_once(argument: str, options: dict[str, Any], word: str) -> None:
    """A mistake that shows only at the first jump costs the user the first thousand steps."""
    model = options.pop("model", None) or network()
    optimizer = options.pop("optimizer", None) or adam(model)
    with pytest.raises(BadArgument, match=word) as caught:
        make(model, optimizer, **{"endpoint": options.pop("server", ShiftingEndpoint()), **options})
    assert caught.value.argument == argument


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 8), nn.Linear(3, 8), nn.Linear(8, 2)

    def forward(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        out: torch.Tensor = self.out(torch.relu(self.first(batch["left"]) + self.second(batch["right"])))
        return out


def test_a_file_that_is_no_checkpoint_is_named_as_the_argument(tmp_path: Path) -> None:
    """The user would be told of an argument `edge_type_embedding.weight`, which `Nowcast` does not have."""
    model = network()
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    with pytest.raises(BadArgument, match=r"mine\.pt") as caught:
        make(model, adam(model), None, forecaster="nino", checkpoint=str(tmp_path / "mine.pt"), context=5)
    assert caught.value.argument == "checkpoint"


def test_example_inputs_reach_the_wiring() -> None:
    """What `forward` takes cannot always be guessed, and a model wired without it is a heap of unconnected layers."""
    model, endpoint = TwoInputs(), ShiftingEndpoint()
    inputs = ({"left": torch.zeros(1, 4), "right": torch.zeros(1, 3)},)
    with make(model, adam(model), endpoint, example_inputs=inputs):
        pass
    assert endpoint.spec.wiring == wire(model, inputs)
    assert endpoint.spec.wiring != wire(model)


def test_a_model_belongs_to_one_job_at_a_time() -> None:
    """Two jobs that move the same weights would each forecast from the other's jumps."""
    model = network()
    optimizer = adam(model)
    with make(model, optimizer, ShiftingEndpoint(), job="first"):
        with pytest.raises(BadArgument, match="first") as caught, make(model, optimizer, ShiftingEndpoint()):
            pass
        with pytest.raises(BadArgument, match="first"), make(model, optimizer, ShiftingEndpoint()):
            pass  # the refused one has not given the claim of the other away
    assert caught.value.argument == "model"


def test_a_layer_frozen_meanwhile_can_be_nowcast_again() -> None:
    """The next run in the process would be refused for a claim that nobody gave free."""
    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    with Nowcast(model, optimizer, server=ShiftingEndpoint(), max_steps=100):
        model[0].requires_grad_(False)
    model[0].requires_grad_(True)
    with Nowcast(model, optimizer, server=ShiftingEndpoint(), max_steps=100):
        pass


@pytest.mark.parametrize("forecaster", ["linear", "wnn", "nino"])
@pytest.mark.parametrize(
    ("set_default", "usual", "default"),
    [
        (torch.set_default_dtype, torch.float32, torch.float64),
        (torch.set_default_dtype, torch.float32, torch.bfloat16),
        (torch.set_default_device, "cpu", "meta"),
    ],
    ids=["float64", "bfloat16", "device"],
)
def test_whatever_torchs_defaults(forecaster: str, set_default: Callable[[Any], None], usual: Any, default: Any) -> None:
    """A script that sets one would train without nowcasts, load forecasts that were rounded to its dtype, or end before its first
    step where its device is a GPU.
    """
    jumped = []
    for value in (usual, default):
        model = network()
        optimizer = adam(model)
        try:
            set_default(value)
            with make(model, optimizer, None, forecaster=forecaster) as nowcast:
                for index in range(PERIOD):
                    drawn = torch.Generator("cpu").manual_seed(index)
                    inputs = torch.randn(8, 8, generator=drawn, dtype=torch.float32, device="cpu")
                    optimizer.zero_grad()
                    model(inputs).square().mean().backward()
                    optimizer.step()
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_default_device(None)
        assert [event.outcome for event in nowcast.events] == ["accepted"]
        jumped.append(flat(model))
    assert torch.equal(*jumped)


def test_a_horizon_beyond_the_forecaster_is_refused(shared: Any) -> None:
    """The server would refuse every nowcast of the run."""
    model = network()
    weights = str(shared / "checkpoints" / "nino_mlp.pt")
    with pytest.raises(BadArgument, match="41") as caught:
        make(model, adam(model), None, forecaster="wnn", checkpoint=weights, policy=FixedHorizon(41))
    assert caught.value.argument == "policy"
    with pytest.raises(BadArgument) as caught:
        make(model, adam(model), None, forecaster="wnn", checkpoint=weights, context=4)
    assert caught.value.argument == "context"


def test_a_network_beyond_the_forecaster_is_refused(tmp_path: Path) -> None:
    """The run would be told so at its first nowcast, and at every other."""
    options = ModelOptions(hidden=4, slots=1)
    tensors = {name: torch.zeros(shape) for name, shape in tensor_shapes(options).items()}
    save_checkpoint(Checkpoint(options, tensors, "single"), tmp_path / "single.safetensors")
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2, 1))
    with pytest.raises(BadArgument, match="up to 9 weights; nino takes 1") as caught:
        make(model, adam(model), None, forecaster="nino", checkpoint=str(tmp_path / "single.safetensors"), context=5)
    assert caught.value.argument == "wiring"


@pytest.mark.parametrize("ended", ["well", "refused"])
def test_a_nowcast_is_entered_once(ended: str) -> None:
    """Its sender has ended: an endpoint in this process would be waited for without end."""
    refusal = BadRequest("no") if ended == "refused" else None

    def fail(call: str) -> None:
        if call == "register" and refusal is not None:
            raise refusal

    model = network()
    optimizer = torch.optim.Adam(model.parameters())
    nowcast = Nowcast(model, optimizer, server=ShiftingEndpoint(fail=fail), max_steps=100, interval=INTERVAL)
    with pytest.raises(BadArgument) if refusal else nullcontext(), nowcast:
        step(model, optimizer, 0)
    with pytest.raises(RuntimeError, match="make another"), nowcast:
        pass
