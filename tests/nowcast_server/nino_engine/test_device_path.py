"""A forecast on a device; without one, on torch's `meta` device, where whatever needs a value on the host fails."""

from itertools import groupby
from typing import Any

import pytest
import torch
from alive import Alive
from networks import random_checkpoint, random_states
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from wirings import drawn_wiring, node_pe, transformer_wiring

from nowcast_server.accelerator import Accelerator, Reservation
from nowcast_server.forecasters.learned import Nino
from nowcast_server.jobs.history import Context
from nowcast_server.nino.engine import DEVICE_SIZES, StreamingEngine
from nowcast_server.nowcasting import forecast
from protos.errors import OutOfMemoryBudget
from protos.messages import JobSpec, NowcastRequest
from protos.wiring import Wiring
from trainer_worker.endpoints import embedded
from trainer_worker.endpoints.embedded import EmbeddedEndpoint
from trainer_worker.endpoints.endpoint import Deadline

META = torch.device("meta")
SMALL, MIXED, LARGE = transformer_wiring(width=16, vocabulary=50), drawn_wiring(5), transformer_wiring(width=300, vocabulary=4000)
VIEWS = ("view", "as_strided", "select.int", "slice", "expand", "permute", "split", "unbind", "detach", "unsqueeze", "t.default")


class Watched(TorchDispatchMode):
    """Notes every operator, and fails at one that has a tensor elsewhere than on the meta device; if `whole`, but for a snapshot
    that is uploaded, and an answer, which is made up.
    """

    def __init__(self, *, whole: bool = False) -> None:
        super().__init__()
        self.whole = whole
        self.operators: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None) -> Any:
        kwargs, name = kwargs or {}, str(func)
        if self.whole and name == "aten._local_scalar_dense.default":
            self.operators.append("answer")
            return 1.0
        if self.whole and name == "aten._to_copy.default" and (given := args[0]).device != (device := kwargs.get("device", META)):
            self.operators.append("upload" if device == META else "answer")
            return torch.ones(given.shape, dtype=given.dtype, device=device)
        if self.whole and name == "aten.copy_.default" and args[0].device != args[1].device:
            self.operators.append("upload" if args[0].device == META else "answer")
            return args[0]
        result = func(*args, **kwargs)
        tensors = [each for each in tree_leaves((args, kwargs, result)) if isinstance(each, torch.Tensor)]
        elsewhere = [each.device for each in tensors if each.device != META]
        assert not elsewhere, f"{func} has a tensor on {elsewhere[0]}"
        self.operators.append(name)
        return result

    @property
    def computed(self) -> list[str]:
        """What a device would be given to do."""
        return [name for name in self.operators if not any(view in name for view in VIEWS)]

    @property
    def runs(self) -> list[tuple[str, int]]:
        """The same in short: uploads, answers, and how many operators come between them."""
        runs = groupby(self.computed, lambda name: name if name in ("upload", "answer") else "computed")
        return [(name, len(list(each))) for name, each in runs]


def on_meta(
    wiring: Wiring, *, graph: bool = True, dtype: torch.dtype = torch.float32, horizons: tuple[int, ...] = (1, 40), **options: Any
) -> tuple[torch.Tensor, Watched, Alive, StreamingEngine]:
    engine = StreamingEngine(random_checkpoint(graph=graph, **options), device="meta")
    states = torch.empty(5, wiring.size, dtype=dtype, device=META)
    features = node_pe(wiring).to(META) if graph else None
    engine.forecast(wiring, states, horizons=(1,), node_pe=features)  # the plan is uploaded now, once for each wiring
    with Alive() as alive, Watched() as watched:
        made = engine.forecast(wiring, states, horizons=horizons, node_pe=features)
    return made, watched, alive, engine


@pytest.mark.parametrize(
    "options",
    [{}, {"graph": False}, {"dtype": torch.float16}, {"dtype": torch.bfloat16, "hidden": 128}, {"vocabulary": 100}, {"layers": 5}],
    ids=["nino", "wnn", "float16", "bfloat16", "words", "deep"],
)
@pytest.mark.parametrize("wiring", [SMALL, MIXED, LARGE], ids=["small", "mixed", "large"])
def test_nothing_comes_back_to_the_host(wiring: Wiring, options: dict[str, Any]) -> None:
    """The device would wait for the host in the middle of a forecast, or be short of memory that its budget says is there."""
    horizons = (1, 5, 20, 40)
    made, watched, alive, engine = on_meta(wiring, **{"hidden": 64, "horizons": horizons, **options})
    assert made.shape == (4, wiring.size)
    assert made.device == META
    assert len(watched.computed) > 30
    assert 4 * len(horizons) * wiring.size < alive.most <= engine.memory_bytes(wiring, horizons=len(horizons))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_nowcast_goes_to_the_device_and_back_once(dtype: str) -> None:
    """A step between upload and answer would need the host: the device would idle meanwhile, or the network be copied."""
    forecaster, accelerator = Nino(random_checkpoint(), device=META), Accelerator(META, limit_bytes=2**30)
    rows = [torch.zeros(LARGE.size, dtype=getattr(torch, dtype)) for _ in range(6)]

    def reserved(*steps: int) -> Reservation:
        context = Context(steps[-1], steps, steps, tuple(rows[step - 1] for step in steps))
        reservation = Reservation(accelerator, context, 0)
        assert reservation.begin()
        return reservation

    first = reserved(1, 2, 3, 4, 5)
    with first.states() as states:  # the plan and the features are uploaded now, once for each wiring
        forecaster.predict(LARGE, states, horizons=(1,))
    first.end()
    second = reserved(2, 3, 4, 5, 6)
    spec = JobSpec(wiring=LARGE, dtype=dtype)  # type: ignore[arg-type]
    request = NowcastRequest(context=[2, 3, 4, 5, 6], horizons=[1, 5, 40], dtype=dtype)  # type: ignore[arg-type]
    with Watched(whole=True) as watched:
        made = forecast(forecaster, spec=spec, context=second._context, request=request, reservation=second)
    assert made.values.shape == (3, LARGE.size)
    upload, (_, operators), flags, (_, checks), answers = watched.runs
    assert upload == ("upload", 1)
    assert operators > 100
    assert flags == ("answer", 1)  # whether snapshots and forecasts are finite, in one
    assert checks <= 2  # the dtype asked for, and a sum
    assert answers == ("answer", 2)  # whether that is finite, and the forecasts


def test_an_embedded_nowcast_goes_to_the_device_and_back_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Training would share the host's time with copies of a context that is there already, or lose its memory to it."""
    spec, forecaster = JobSpec(wiring=LARGE), Nino(random_checkpoint(), device=META)
    endpoint, out = EmbeddedEndpoint(forecaster, spec), torch.empty(1, LARGE.size)
    needed_bytes = 4 * 6 * LARGE.size + forecaster.working_bytes(LARGE, context=5)  # five snapshots and a forecast
    free = iter([2**40, 2**40, 2**40, 0, 2 * needed_bytes - 2, 2 * needed_bytes])
    monkeypatch.setattr(embedded, "free_memory", lambda _: next(free))
    forecaster.predict(LARGE, torch.empty(5, LARGE.size, device=META), horizons=(1,))  # uploads the plan and the features
    rows = [torch.zeros(LARGE.size) for _ in range(6)]

    def uploads(first: int) -> int:
        """Snapshots uploaded for a forecast."""
        with Watched(whole=True) as watched:
            endpoint._forecast({step: rows[step] for step in range(first, first + 5)}, (40,), out)
        (upload, count), (_, operators), answers = watched.runs
        assert (upload, answers) == ("upload", ("answer", 2))  # whether all is finite, and the forecast
        assert operators > 100
        return count

    assert [uploads(0), uploads(1)] == [5, 1]
    endpoint.register(spec, replace=True, deadline=Deadline(60))
    assert uploads(1) == 5  # a run that begins anew has other weights
    for _ in range(2):
        with pytest.raises(OutOfMemoryBudget, match="where training leaves"):
            uploads(1)
    assert uploads(1) == 5  # and training its memory


def test_a_small_network_takes_few_operators() -> None:
    """Each costs the host some 5 microseconds to queue: a small network is as slow as they are many."""
    assert SMALL.edges < DEVICE_SIZES.bundle
    assert len(on_meta(SMALL)[1].computed) < 250


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_forecast_leaves_the_default_stream_alone() -> None:
    """Embedded beside a training, each forecast would hold up the steps that come after it."""
    wiring, forecaster = transformer_wiring(), Nino(random_checkpoint(), device="cuda")
    states = random_states(wiring)
    forecaster.forecast(wiring, states, (1,))
    begun, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(2_000_000_000)  # the training has a second's work queued
    begun.record()
    forecaster.forecast(wiring, states, (1,))
    assert not begun.query()  # the forecast is there, and the training still at what it had before
    ended.record()
    ended.synchronize()
