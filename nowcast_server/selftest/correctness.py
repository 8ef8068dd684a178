"""Checks of forecasts: correct, deterministic, within the memory budget."""

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

from nowcast_server.accelerator import Accelerator
from nowcast_server.forecasting import forecast
from nowcast_server.jobs.history import Context
from nowcast_server.nino.precision import PRECISIONS, Precision
from nowcast_server.nino.reference import NinoReference
from nowcast_server.pinned import CudaLocks, Locks, PinnedMemory
from nowcast_server.selftest.networks import CONTEXT, FAMILIES, convolutional, snapshots, transformer
from nowcast_server.selftest.setup import CPU, Failed, Figures, Setup, error, multiplying
from protos.errors import OutOfMemoryBudget
from protos.messages import JobSpec, NowcastRequest
from protos.wiring import Wiring

HORIZONS: Final = (1, 40)
LIMITS: Final[dict[Precision, float]] = {"float32": 3e-5, "tf32": 2e-2, "bfloat16": 3e-2}
"""Largest error, of the forecast change."""


def parity(setup: Setup) -> Figures:
    """Forecasts are those of the plain model on the CPU, for every form of network and every precision."""
    figures: Figures = {}
    for name, make in FAMILIES.items():
        wiring = make()
        states, features = snapshots(wiring, device=CPU), setup.features(wiring, device=CPU)
        expected = NinoReference(setup.checkpoint).forecast(wiring, states, horizons=HORIZONS, node_pe=features)
        for precision in PRECISIONS if setup.cuda else ("float32", "bfloat16"):
            with multiplying(precision):
                made = setup.engine(precision).forecast(wiring, states, horizons=HORIZONS, node_pe=features)
            figures[f"{name} {precision}"] = found = error(made, expected, states[-1])
            if not found <= LIMITS[precision]:
                raise Failed(f"{name} in {precision} is off by {found:.1e} of the forecast change, above {LIMITS[precision]:.0e}")
    return figures


def determinism(setup: Setup) -> Figures:
    """The same snapshots give the same forecast, bit for bit, whatever else the device does."""
    engine = setup.engine()
    for name, make in FAMILIES.items():
        wiring = make()
        states, features = snapshots(wiring, device=CPU), setup.features(wiring)
        made = [engine.forecast(wiring, states, horizons=HORIZONS, node_pe=features) for _ in range(3)]
        if not all(torch.equal(made[0], other) for other in made[1:]):
            raise Failed(f"three forecasts for {name} differ")
    return {"networks": len(FAMILIES), "rounds": 3}


class _NoLocks:
    """Where no device copies, nothing is locked."""

    def lock(self, address: int, size_bytes: int) -> None: ...
    def unlock(self, address: int) -> None: ...


def pinned_memory(setup: Setup) -> Figures:
    """Host memory is locked to the byte, and let go."""
    locks: Locks = CudaLocks() if setup.cuda else _NoLocks()
    memory = PinnedMemory(locks)
    sizes = [(3, 1_000_003), (6, 333_333), (1, 5_000_001)]
    rows = [memory.empty(size, torch.float32) for size in sizes]
    memory.settle()
    expected = sum(4 * count * size for count, size in sizes)
    if memory.used_bytes != expected:
        raise Failed(f"{memory.used_bytes} bytes are locked for {expected}")
    figures: Figures = {"locked_bytes": memory.used_bytes}
    if setup.cuda:
        if not all(each.is_pinned() for each in rows):
            raise Failed("torch does not know the memory as locked: uploads will not run beside other work")
        figures["upload_gb_per_s"] = _upload_rate(setup, rows[2][0])
        figures["upload_gb_per_s_not_locked"] = _upload_rate(setup, torch.zeros(rows[2].shape[1]))
    del rows
    memory.settle()
    if memory.used_bytes:
        raise Failed(f"{memory.used_bytes} bytes are still locked after their tensors are gone")
    return figures


def _upload_rate(setup: Setup, row: Tensor) -> float:
    there = torch.empty_like(row, device=setup.device)
    return row.nbytes / setup.seconds(lambda: there.copy_(row, non_blocking=True), rounds=5) / 1e9


def device_memory(setup: Setup) -> Figures:
    """A forecast takes no more memory than a server sets aside for it."""
    wiring = transformer(384, layers=6, vocabulary=25_000) if setup.cuda else transformer(64, layers=2, vocabulary=1000)
    states, features, engine = snapshots(wiring, device=setup.device), setup.features(wiring), setup.engine()
    engine.forecast(wiring, states, horizons=HORIZONS, node_pe=features)
    promised = engine.memory_bytes(wiring, horizons=len(HORIZONS))
    before = _restart_peak(setup)
    engine.forecast(wiring, states, horizons=HORIZONS, node_pe=features)
    taken = _peak(setup) - before
    if taken > promised:
        raise Failed(f"a forecast took {taken} bytes, of {promised} promised")
    return {"parameters": wiring.size, "taken_bytes": taken, "promised_bytes": promised}


def _restart_peak(setup: Setup) -> int:
    if setup.cuda:
        torch.cuda.reset_peak_memory_stats(setup.device)
        return torch.cuda.memory_allocated(setup.device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _peak(setup: Setup) -> int:
    return torch.cuda.max_memory_allocated(setup.device) if setup.cuda else _status("VmHWM")


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


class _Greedy:
    """A forecaster that first wants more memory than there is, and then forecasts no change."""

    name, max_horizon, glide_horizon, weights_bytes = "greedy", None, 1, 0
    asked = 0

    def forecast(self, wiring: Wiring, states: Sequence[Tensor], horizons: Sequence[int]) -> Tensor:
        del wiring
        self.asked += 1
        if self.asked <= 2:
            torch.empty(2**48, device=states[0].device)
        return states[-1].repeat(len(horizons), 1)

    def check(self, wiring: Wiring, *, context: int) -> None: ...
    def working_bytes(self, wiring: Wiring, *, context: int) -> int:
        del wiring, context
        return 0

    def host_bytes(self, wiring: Wiring) -> int:
        del wiring
        return 0

    def work_s(self, wiring: Wiring, *, context: int) -> float:
        del wiring, context
        return 0.0


def out_of_memory(setup: Setup) -> Figures:
    """A forecast that finds no memory is one job's answer, and the next one works."""
    wiring, greedy = convolutional(1, 8, 12), _Greedy()
    spec, context = JobSpec(wiring=wiring), _context(snapshots(wiring, device=CPU))
    request = NowcastRequest(context=list(range(CONTEXT)), horizons=[1])
    accelerator = Accelerator(setup.device, limit_bytes=2**30) if setup.cuda else None

    def ask() -> Tensor:
        reservation = None if accelerator is None else accelerator.reservation(context, working_bytes=0)
        if reservation is not None and not reservation.begin():
            raise Failed("memory was not given back")
        try:
            return forecast(greedy, spec=spec, context=context, request=request, reservation=reservation).values
        finally:
            if reservation is not None:
                reservation.end()

    refused = 0
    while greedy.asked < 2:
        try:
            ask()
        except OutOfMemoryBudget:
            refused += 1
        else:
            raise Failed("a forecast got more memory than there is")
    if accelerator is not None and accelerator.lost():
        raise Failed("the device cannot be used any more")
    if not torch.equal(ask()[0], context.states[-1]):
        raise Failed("the next forecast is wrong")
    return {"refused": refused}


def rolling_context(setup: Setup) -> Figures:
    """A nowcast uploads the one snapshot the device has not, and forecasts from the right ones."""
    wiring = convolutional(1, 8, 12)
    rows = [*snapshots(wiring, device=CPU), *snapshots(wiring, device=CPU, seed=1)]
    accelerator, engine = Accelerator(setup.device, limit_bytes=100 * rows[0].nbytes), setup.engine()
    uploads, features = [], setup.features(wiring)
    for first in range(4):
        before, states = accelerator.uploads, rows[first : first + CONTEXT]
        reservation = accelerator.reservation(_context(states, first=first), working_bytes=0)
        if not reservation.begin():
            raise Failed("memory was not given back")
        with reservation.states() as there:
            made = engine.forecast(wiring, there, horizons=HORIZONS, node_pe=features).cpu()
        reservation.end()
        uploads.append(accelerator.uploads - before)
        if not torch.equal(made, engine.forecast(wiring, states, horizons=HORIZONS, node_pe=features).cpu()):
            raise Failed(f"nowcast {first} is not made from its own snapshots")
    if uploads != [CONTEXT, 1, 1, 1]:
        raise Failed(f"four nowcasts uploaded {uploads} snapshots")
    return {"uploads": uploads}


def _context(states: Sequence[Tensor], *, first: int = 0) -> Context:
    steps = tuple(range(first, first + len(states)))
    return Context(steps[-1], steps, steps, tuple(states))
