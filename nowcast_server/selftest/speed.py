"""Checks of speed: forecasts alone, and beside other work."""

import threading
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Final

import torch

from nowcast_server.device import Device
from nowcast_server.nino.reference import NinoReference
from nowcast_server.selftest.correctness import HORIZONS, LIMITS
from nowcast_server.selftest.networks import FAMILIES, convolutional, snapshots, transformer
from nowcast_server.selftest.setup import Failed, Figures, Setup, error
from protos.wiring import Wiring

SIZES: Final[Mapping[str, Callable[[], Wiring]]] = {
    "14k": lambda: convolutional(1, 16, 32, 32),
    "0.2M": lambda: transformer(64, layers=2, vocabulary=1000),
    "1.4M": lambda: transformer(128, layers=1, vocabulary=5000),
    "30M": lambda: transformer(384, layers=6, vocabulary=25_000),
    "1B": lambda: transformer(2048, layers=18, vocabulary=32_000),
}
ON_CPU: Final = ("14k", "0.2M")
JOBS: Final = 64
BYTES_A_WEIGHT: Final = 2 * 5 + 4 + 4
"""A context of 16 bits, a forecast, and what else a weight takes while it is drawn."""


def overlap(setup: Setup) -> Figures:
    """Training steps go on beside a forecast on the same device: together they take no longer than one after the other."""
    side, steps = (4096, 50) if setup.cuda else (512, 10)
    matrix = torch.randn(side, side, device=setup.device)
    wiring = SIZES["30M" if setup.cuda else "0.2M"]()
    states, features, engine = snapshots(wiring, device=setup.device), setup.features(wiring), setup.engine()

    def train() -> None:
        for _ in range(steps):
            torch.mm(matrix, matrix)
        if setup.cuda:
            torch.cuda.current_stream(setup.device).synchronize()

    def foresee() -> None:
        engine.forecast(wiring, states, horizons=(1,), node_pe=features)

    def both() -> None:
        beside = threading.Thread(target=foresee)
        beside.start()
        train()
        beside.join()

    training_s, forecast_s, both_s = (setup.seconds(work, rounds=3 if setup.cuda else 1) for work in (train, foresee, both))
    if setup.cuda and both_s > 1.2 * (training_s + forecast_s):
        raise Failed(f"{steps} steps take {training_s:.3f} s, a forecast {forecast_s:.3f} s, but together {both_s:.3f} s")
    return {"training_s": training_s, "forecast_s": forecast_s, "both_s": both_s}


def throughput(setup: Setup) -> Figures:
    """Edges a second by size of network, beside what the device's products reach."""
    figures: Figures = {"products_tflop_per_s": _products_rate(setup)}
    engine = setup.engine()
    for name, make in SIZES.items():
        if not _fits(setup, name):
            continue
        wiring = make()
        dtype = torch.bfloat16 if name == "1B" else torch.float32
        states, features = snapshots(wiring, device=setup.device, dtype=dtype), setup.features(wiring)
        forecast = partial(engine.forecast, wiring, states, horizons=(1,), node_pe=features)
        seconds = setup.seconds(forecast, rounds=1 if name == "1B" else 5)
        figures[name] = {"edges": wiring.edges, "seconds": seconds, "edges_per_s": wiring.edges / seconds}
        del states, forecast
    return figures


def _fits(setup: Setup, name: str) -> bool:
    if not setup.cuda:
        return name in ON_CPU
    return name != "1B" or torch.cuda.mem_get_info(setup.device)[0] > 1.5e9 * BYTES_A_WEIGHT


def _products_rate(setup: Setup) -> float:
    """Of products of the engine's own shape, in TFLOP/s."""
    hidden, rows = setup.checkpoint.options.hidden, 32_768 if setup.cuda else 2048
    h, matrix = torch.randn(rows, hidden, device=setup.device), torch.randn(hidden, hidden, device=setup.device)

    def products() -> None:
        for _ in range(20):
            torch.mm(h, matrix)

    return 20 * 2 * rows * hidden**2 / setup.seconds(products, rounds=3) / 1e12


def published(setup: Setup) -> Figures:
    """The published model, as PyTorch Geometric computes it: how much longer it takes, at sizes it can do."""
    figures: Figures = {}
    reference, engine = NinoReference(setup.checkpoint, device=setup.device), setup.engine()
    networks = {name: SIZES[name] for name in (*ON_CPU, "1.4M")} if setup.cuda else {"14k": SIZES["14k"], **FAMILIES}
    for name, make in networks.items():
        wiring = make()
        states, features = snapshots(wiring, device=setup.device), setup.features(wiring)
        made = {}
        times = {}
        for key, each in (("engine", engine), ("published", reference)):
            forecast = partial(each.forecast, wiring, states, horizons=HORIZONS, node_pe=features)
            made[key], times[key] = forecast(), setup.seconds(forecast, rounds=1)
        found = error(made["engine"], made["published"], states[-1])
        if not found <= LIMITS["float32"]:
            raise Failed(f"{name}: the engine and the published model differ by {found:.1e} of the forecast change")
        figures[name] = {"published_s": times["published"], "ratio": times["published"] / times["engine"], "error": found}
    return figures


def mixed_jobs(setup: Setup) -> Figures:
    """64 jobs ask at once, one in sixteen with a large network: none waits for all large ones, none gets another's forecast."""
    wirings = [SIZES["14k"](), SIZES["1.4M" if setup.cuda else "0.2M"]()]
    states = [snapshots(wiring, device=setup.device) for wiring in wirings]
    features, engine = [setup.features(wiring) for wiring in wirings], setup.engine()
    device = Device(limit=JOBS, tenant_limit=JOBS, job_limit=1)
    took: dict[int, float] = {}

    def forecast(index: int) -> torch.Tensor:
        which = int(index % 16 == 0)
        return engine.forecast(wirings[which], states[which], horizons=(1,), node_pe=features[which])

    def work(index: int, since: float) -> torch.Tensor:
        made = forecast(index).cpu()
        took[index] = time.perf_counter() - since
        return made

    expected = [forecast(index).cpu() for index in range(2)]
    device.start()
    start = time.perf_counter()
    futures = [device.submit(partial(work, index, start), tenant="selftest", job=str(index)) for index in range(JOBS)]
    made = [future.result() for future in futures]
    seconds = time.perf_counter() - start
    device.stop()
    if not all(torch.equal(each, expected[0 if index % 16 == 0 else 1]) for index, each in enumerate(made)):
        raise Failed("a job beside others has another forecast than alone")
    small = sorted(taken for index, taken in took.items() if index % 16)
    return {
        "jobs_per_s": JOBS / seconds,
        "small_p50_s": small[len(small) // 2],
        "small_p95_s": small[int(0.95 * len(small))],
        "all_s": seconds,
    }
