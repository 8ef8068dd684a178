"""The ten checks: forecasts are correct, deterministic, within the memory budget; how fast they are, alone and beside others."""

import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import median
from typing import Any, Final

import torch
from torch import Tensor

from nowcast_server.accelerator import Accelerator, Reservation
from nowcast_server.device import Device
from nowcast_server.forecasters import load_forecaster
from nowcast_server.forecasters.base import CPU, Horizons
from nowcast_server.forecasters.learned import Nino
from nowcast_server.forecasters.simple import Last
from nowcast_server.jobs.history import Context
from nowcast_server.nino.checkpoint import Checkpoint, ModelOptions
from nowcast_server.nino.engine import DEVICE_SIZES, StreamingEngine
from nowcast_server.nowcasting import forecast
from nowcast_server.selftest.networks import CONTEXT, FAMILIES, SIZES, convolutional, snapshots
from nowcast_server.streams import own_stream, wait
from protos.errors import OutOfMemoryBudget
from protos.messages import JobSpec, NowcastRequest
from protos.wiring import Wiring

Figures = dict[str, Any]
HORIZONS: Final = (1, 40)
LIMIT: Final = 3e-5  # largest error, of the forecast change
TF32_LIMIT: Final = 0.02  # the same where factors of products are rounded to 11 bits
SPECTRAL_LIMIT: Final = 1e-3  # the same of `spectral`, which enlarges what hardly moves, rounding too
DTYPES: Final = (torch.float32, torch.float16, torch.bfloat16)  # of snapshots
ON_CPU: Final = ("14k", "0.2M")
JOBS: Final = 64
BYTES_A_WEIGHT: Final = 2 * 5 + 4 + 4  # a context of 16 bits, a forecast, and what else a weight takes while it is drawn


class Failed(Exception):
    """A check did not hold; says what was found and what should have been."""


@dataclass(frozen=True)
class Setup:
    device: torch.device  # where
    checkpoint: Checkpoint  # a graph network's
    plain: Callable[[Checkpoint, torch.device], Any] | None = None  # the model as one would write it down, where it is installed

    @property
    def cuda(self) -> bool:
        return self.device.type == "cuda"

    def forecaster(self) -> Nino:
        return Nino(self.checkpoint, device=self.device)

    def seconds(self, work: Callable[[], object], *, rounds: int) -> float:
        """Median time of some work on the device, after a first round that does not count."""
        times = []
        for _ in range(rounds + 1):
            start = time.perf_counter()
            work()
            if self.cuda:
                torch.cuda.synchronize(self.device)
            times.append(time.perf_counter() - start)
        return median(times[1:])


def error(ours: Tensor, theirs: Tensor, last: Tensor) -> float:
    """Of the forecast change, the worst over horizons."""
    changes = theirs - last
    return max(float((one - other).norm() / change.norm()) for one, other, change in zip(ours, theirs, changes, strict=True))


@contextmanager
def _products(precision: str) -> Iterator[None]:
    """Within it, products of float32 are computed as torch's `precision` says, whatever the environment asks for."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def parity(setup: Setup) -> Figures:
    """Forecasts are those of the CPU (there, of work cut as for a device) for every network and dtype; on CUDA also with TF32."""
    figures, spectral = Figures(spectral=0.0), [load_forecaster("spectral", device=each) for each in (CPU, setup.device)]
    exact, device = StreamingEngine(setup.checkpoint), StreamingEngine(setup.checkpoint, device=setup.device, sizes=DEVICE_SIZES)
    for (name, make), dtype in product(FAMILIES.items(), DTYPES):
        wiring = make()
        states = snapshots(wiring, device=CPU, dtype=dtype)
        expected, last = exact.forecast(wiring, states, horizons=HORIZONS), states[-1].float()
        for precision, limit in (("highest", LIMIT), ("high", TF32_LIMIT))[: 1 + setup.cuda]:
            with _products(precision):
                found = error(device.forecast(wiring, states, horizons=HORIZONS).cpu(), expected, last)
            key = name if precision == "highest" else f"{name}, TF32"
            figures[key] = max(found, figures.get(key, 0.0))
            if not found <= limit:
                raise Failed(f"{key}, {dtype} is off by {found:.1e} of the forecast change, above {limit:.0e}")
        here, there = (each.forecast(wiring, states, HORIZONS) for each in spectral)
        figures["spectral"] = max(figures["spectral"], found := error(there, here, last))
        if not found <= SPECTRAL_LIMIT:
            raise Failed(f"spectral for {name}, {dtype} is off by {found:.1e} of the forecast change, above {SPECTRAL_LIMIT:.0e}")
    return figures


def reference(setup: Setup) -> Figures:
    """The plain model, with every edge in memory at once, forecasts the same; how many times as long it takes."""
    if setup.plain is None:
        return {"left_out": "the plain model is not installed (extra `metatrain`)"}
    figures: Figures = {}
    plain, forecaster = setup.plain(setup.checkpoint, setup.device), setup.forecaster()
    for name in ("14k", "0.2M", "1.4M") if setup.cuda else ("14k",):
        wiring = SIZES[name]()
        states = snapshots(wiring, device=setup.device)
        ours, theirs = (partial(each.forecast, wiring, states, horizons=HORIZONS) for each in (forecaster, plain))
        with _products("highest"):
            try:
                found = error(ours(), theirs(), states[-1])
            except torch.OutOfMemoryError:  # the plain model's
                break
            ours_s, theirs_s = (setup.seconds(work, rounds=1) for work in (ours, theirs))
        figures[name] = {"error": found, "seconds": ours_s, "plain_s": theirs_s, "times": theirs_s / ours_s}
        if not found <= LIMIT:
            raise Failed(f"{name} is off by {found:.1e} of what the plain model forecasts, above {LIMIT:.0e}")
    return figures


def determinism(setup: Setup) -> Figures:
    """The same snapshots give the same forecast, bit for bit, whatever else the device does."""
    forecaster = setup.forecaster()
    for name, make in FAMILIES.items():
        wiring = make()
        states = snapshots(wiring, device=CPU)
        made = [forecaster.forecast(wiring, states, HORIZONS) for _ in range(3)]
        if not all(torch.equal(made[0], other) for other in made[1:]):
            raise Failed(f"three forecasts for {name} differ")
    return {"networks": len(FAMILIES), "rounds": 3}


def device_memory(setup: Setup) -> Figures:
    """A forecast takes no more memory than a server sets aside for it, and pins none of the host's."""
    wiring = SIZES["30M" if setup.cuda else "0.2M"]()
    states, figures = snapshots(wiring, device=setup.device), Figures(parameters=wiring.size)
    for forecaster in (setup.forecaster(), load_forecaster("spectral", device=setup.device)):
        promised = forecaster.working_bytes(wiring, context=CONTEXT) + 4 * len(HORIZONS) * wiring.size
        if setup.cuda:
            torch.cuda.reset_peak_memory_stats(setup.device)
        before = _peak_bytes(setup)
        forecaster.forecast(wiring, states, HORIZONS)
        taken = _peak_bytes(setup) - before
        figures[forecaster.name] = {"taken_bytes": taken, "promised_bytes": promised}
        if taken > promised:
            raise Failed(f"a forecast by {forecaster.name} took {taken} bytes, of {promised} promised")
    pinned = torch.cuda.host_memory_stats().get("allocated_bytes.current", 0) if setup.cuda else 0
    if pinned > 2**20:  # torch itself pins what `item` brings back
        raise Failed(f"{pinned} bytes of the host's memory are pinned, which no budget counts")
    return {**figures, "pinned_bytes": pinned}


def _peak_bytes(setup: Setup) -> int:
    if setup.cuda:
        return torch.cuda.max_memory_allocated(setup.device)
    return 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


class _Greedy(Last):
    """First wants more memory than there is, twice as a device is asked again, and then forecasts no change."""

    asked = 0

    def predict(self, wiring: Wiring, states: Sequence[Tensor], *, horizons: Horizons) -> Tensor:
        self.asked += 1
        if self.asked <= 2:
            torch.empty(2**48, device=states[0].device)
        return super().predict(wiring, states, horizons=horizons)


def out_of_memory(setup: Setup) -> Figures:
    """A forecast that finds no memory is one job's answer, and the next one works."""
    wiring, greedy = convolutional(1, 8, 12), _Greedy()
    spec, context = JobSpec(wiring=wiring), _context(snapshots(wiring, device=CPU))
    request = NowcastRequest(context=list(range(CONTEXT)), horizons=[1])
    accelerator = Accelerator(setup.device, limit_bytes=2**30)

    def ask() -> Tensor:
        with _reserved(accelerator, context) as reservation:
            return forecast(greedy, spec=spec, context=context, request=request, reservation=reservation).values

    with suppress(OutOfMemoryBudget):
        ask()
        raise Failed("a forecast got more memory than there is")
    if accelerator.lost():
        raise Failed("the device cannot be used any more")
    if not torch.equal(ask()[0], context.states[-1]):
        raise Failed("the next forecast is wrong")
    return {"asked": greedy.asked}


def rolling_context(setup: Setup) -> Figures:
    """A nowcast uploads the one snapshot the device has not, and forecasts from the right ones."""
    wiring = convolutional(1, 8, 12)
    rows = [*snapshots(wiring, device=CPU), *snapshots(wiring, device=CPU, seed=1)]
    accelerator, forecaster = Accelerator(setup.device, limit_bytes=100 * rows[0].nbytes), setup.forecaster()
    uploads = []
    for first in range(4):
        before, states = accelerator.uploads, rows[first : first + CONTEXT]
        with _reserved(accelerator, _context(states, first=first)) as reservation, reservation.states() as there:
            made = forecaster.forecast(wiring, there, HORIZONS).cpu()
        uploads.append(accelerator.uploads - before)
        if not torch.equal(made, forecaster.forecast(wiring, states, HORIZONS)):
            raise Failed(f"nowcast {first} is not made from its own snapshots")
    if uploads != [CONTEXT, 1, 1, 1]:
        raise Failed(f"four nowcasts uploaded {uploads} snapshots")
    return {"uploads": uploads}


@contextmanager
def _reserved(accelerator: Accelerator, context: Context) -> Iterator[Reservation]:
    reservation = Reservation(accelerator, context, 0)
    if not reservation.begin():
        raise Failed("memory was not given back")
    try:
        yield reservation
    finally:
        reservation.end()


def _context(states: Sequence[Tensor], *, first: int = 0) -> Context:
    steps = tuple(range(first, first + len(states)))
    return Context(steps[-1], steps, steps, tuple(states))


def copies(setup: Setup) -> Figures:
    """Snapshots go up and forecasts come down while training steps are computed."""
    row = snapshots(SIZES["30M" if setup.cuda else "0.2M"](), device=CPU)[0]

    def copy() -> None:
        with own_stream(setup.device, shared=False):
            for _ in range(10 if setup.cuda else 1):
                row.to(setup.device, non_blocking=True, copy=True).cpu()

    figures = _beside(setup, copy)
    least_s, most_s = sorted((figures["training_s"], figures["alone_s"]))
    if setup.cuda and figures["both_s"] > most_s + 0.7 * least_s:
        raise Failed(f"copies and training steps wait for each other: {figures}")
    return figures


def overlap(setup: Setup) -> Figures:
    """Training steps go on beside a forecast on the same device: together they take no longer than one after the other."""
    wiring = SIZES["30M" if setup.cuda else "0.2M"]()
    figures = _beside(setup, partial(setup.forecaster().forecast, wiring, snapshots(wiring, device=setup.device), (1,)))
    if setup.cuda and figures["both_s"] > 1.2 * (figures["training_s"] + figures["alone_s"]):
        raise Failed(f"a forecast and training steps hold each other up: {figures}")
    return figures


def _beside(setup: Setup, work: Callable[[], object]) -> Figures:
    side, steps = (4096, 50) if setup.cuda else (512, 10)
    matrix = torch.randn(side, side, device=setup.device)

    def train() -> None:
        for _ in range(steps):
            torch.mm(matrix, matrix)
        wait(setup.device)

    def both() -> None:
        beside = threading.Thread(target=work)
        beside.start()
        train()
        beside.join()

    works = {"training_s": train, "alone_s": work, "both_s": both}
    return {name: setup.seconds(each, rounds=3 if setup.cuda else 1) for name, each in works.items()}


def throughput(setup: Setup) -> Figures:
    """Edges a second by size of network, and their products as a share of what bare ones of the same shape reach."""
    figures: Figures = {"products_flop_per_s": (rate := _products_rate(setup))}
    forecasters = setup.forecaster(), load_forecaster("spectral", device=setup.device)
    for name, make in SIZES.items():
        if name not in ON_CPU and not setup.cuda:
            continue
        if name == "1B" and torch.cuda.mem_get_info(setup.device)[0] < 1.5e9 * BYTES_A_WEIGHT:
            continue
        wiring = make()
        states = snapshots(wiring, device=setup.device, dtype=torch.bfloat16 if name == "1B" else torch.float32)
        work, spectral = (partial(each.forecast, wiring, states, (1,)) for each in forecasters)
        rounds = 1 if name == "1B" else 3
        seconds = setup.seconds(work, rounds=rounds)
        speed = wiring.edges / seconds
        share = speed * flops_per_edge(setup.checkpoint.options, horizons=1) / rate
        figures[name] = {"edges": wiring.edges, "seconds": seconds, "edges_per_s": speed, "share_of_products": share}
        figures[name]["spectral_s"] = setup.seconds(spectral, rounds=rounds)
        del states, work, spectral
    return figures


def flops_per_edge(options: ModelOptions, *, horizons: int) -> int:
    """Of the products an edge with one weight needs, see `nowcast_server.nino.engine`."""
    updates, hidden = options.layers - 1, options.hidden
    # one walk for each convolution and one for the forecasts; all begin with the weights, the i-th has i products of H x H
    return 2 * hidden * ((updates + 1) * options.context + sum(range(updates + 1)) * hidden + horizons)


def _products_rate(setup: Setup) -> float:
    """Of products of the engine's own shape, in floating-point operations a second."""
    hidden, rows = setup.checkpoint.options.hidden, 262_144 if setup.cuda else 2048
    h, matrix = torch.randn(rows, hidden, device=setup.device), torch.randn(hidden, hidden, device=setup.device)

    def products() -> None:
        for _ in range(20):
            torch.mm(h, matrix)

    return 20 * 2 * rows * hidden**2 / setup.seconds(products, rounds=3)


def mixed_jobs(setup: Setup) -> Figures:
    """64 jobs ask at once, one in sixteen with a large network: none gets another's forecast; how long they wait."""
    wirings = [SIZES[name]() for name in ("14k", "1.4M" if setup.cuda else "0.2M")]
    states = [snapshots(wiring, device=setup.device) for wiring in wirings]
    forecaster, device = setup.forecaster(), Device(limit=JOBS, tenant_limit=JOBS, job_limit=1)
    took: dict[int, float] = {}

    def foresee(index: int, since: float) -> Tensor:
        which = int(index % 16 == 0)
        made = forecaster.forecast(wirings[which], states[which], (1,)).cpu()
        took[index] = time.perf_counter() - since
        return made

    expected = [foresee(index, 0.0) for index in range(2)]
    device.start()
    start = time.perf_counter()
    futures = [device.submit(partial(foresee, index, start), tenant="selftest", job=str(index)) for index in range(JOBS)]
    made = [future.result() for future in futures]
    seconds = time.perf_counter() - start
    device.stop()
    if not all(torch.equal(each, expected[0 if index % 16 == 0 else 1]) for index, each in enumerate(made)):
        raise Failed("a job beside others has another forecast than alone")
    waits = sorted(took.values())
    return {"jobs_per_s": JOBS / seconds, "p50_s": waits[JOBS // 2], "p95_s": waits[int(0.95 * JOBS)]}


_ALL: Final = parity, reference, determinism, device_memory, out_of_memory, rolling_context, copies, overlap, throughput, mixed_jobs
CHECKS: Final[Mapping[str, Callable[[Setup], Figures]]] = {check.__name__: check for check in _ALL}
