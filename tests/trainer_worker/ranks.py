"""What the processes of `test_distributed.py` run, and how to start them."""

import os
import socket
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from small_runs import CONTEXT, INTERVAL, PERIOD, WHOLE, ShiftingEndpoint, flat, network
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from protos.errors import BadRequest, Unavailable
from trainer_worker import BestAfterRecovery, FixedHorizon, Guard, Jump, Nowcast
from trainer_worker.errors import BadArgument, RanksDiffer
from trainer_worker.wiring import wire

STEPS = 3 * PERIOD


def run_scenarios(folder: Path, url: str, *, world: int = 2) -> list[dict[str, Any]]:
    """Play all scenarios in `world` processes joined by gloo; what each rank has to tell, by scenario."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    multiprocessing.spawn(_main, (folder, port, world, url), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _main(rank: int, folder: Path, port: int, world: int, url: str) -> None:
    torch.set_num_threads(1)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    dist.init_process_group("gloo", rank=rank, world_size=world, timeout=timedelta(seconds=60))
    embedded = {"forecaster": "linear"}
    told = {
        "wrapped": train(rank, embedded, wrapped=True),
        "bare": train(rank, embedded, wrapped=False),
        "http": train(rank, {"server": url, "forecaster": "linear", "dtype": "bfloat16"}),
        "failing": train(rank, {"server": ShiftingEndpoint(fail=_fail)}),
        "overlap": train(rank, {**embedded, "overlap": True}),
        "tried": train(rank, {**embedded, "probe": Spoilt(rank), "guard": Guard(recovery=4)}),
        "compared": train(rank, {**embedded, **compared(rank)}),
        "stopped": train(rank, embedded, steps=PERIOD + 3),
    }
    if rank == 0:
        torch.save(told["stopped"], folder / "checkpoint.pt")
    dist.barrier()
    told["resumed"] = train(rank, embedded, saved=torch.load(folder / "checkpoint.pt", weights_only=True))
    halfway = train(rank, {**embedded, **compared(rank)}, steps=PERIOD + 6)
    if rank == 0:
        torch.save(halfway, folder / "halfway.pt")
    dist.barrier()
    saved = torch.load(folder / "halfway.pt", weights_only=True)
    told["compared resumed"] = train(rank, {**embedded, **compared(rank)}, saved=saved)
    told["apart"] = train_apart(rank)
    told["refused"] = refused(rank)
    told["alone"] = train_alone(rank)
    told["sharded"] = train_sharded(rank)
    told["sharded compared"] = train_sharded(rank, **compared(rank))
    told["large"] = jump_large(rank)
    torch.set_default_dtype(torch.float64)
    told["double"], told["sharded double"] = train(rank, embedded), train_sharded(rank)
    torch.save(told, folder / f"{rank}.pt")
    dist.destroy_process_group()


def train(
    rank: int, options: dict[str, Any], *, wrapped: bool = True, steps: int = STEPS, saved: dict[str, Any] | None = None
) -> dict[str, Any]:
    """A data-parallel run, each rank on its own batches; weights at every step, collectives counted."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    replica = DistributedDataParallel(model, forward_sync_buffers=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    nowcast = Nowcast(replica if wrapped else model, optimizer, max_steps=STEPS, interval=INTERVAL, context=CONTEXT, **options)
    if isinstance(probe := options.get("probe"), Preferring):
        probe.nowcast = nowcast
    broadcasts = []
    broadcast = dist.broadcast
    dist.broadcast = lambda *args, **kwargs: (broadcasts.append(nowcast.step), broadcast(*args, **kwargs))[1]
    weights = []
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        nowcast.load_state_dict(saved["nowcast"])
    with nowcast:
        while nowcast.step < steps:
            generator = torch.Generator().manual_seed(2 * nowcast.step + rank)
            inputs = torch.randn(16, 8, generator=generator)
            optimizer.zero_grad()
            functional.cross_entropy(replica(inputs), (inputs.sum(1) > 0).long()).backward()
            optimizer.step()
            weights.append(flat(model))
    dist.broadcast = broadcast
    return {
        "weights": torch.stack(weights),
        "buffers": model[1].running_mean.clone(),
        "events": [event.to_dict() for event in nowcast.events if event.kind == "nowcast"],
        "broadcasts": sorted(set(broadcasts)),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "nowcast": nowcast.state_dict(),
    }


def train_apart(rank: int) -> dict[str, Any]:
    """Ranks that hold different weights; what they are told."""
    model = network(seed=rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    told = ""
    with Nowcast(model, optimizer, max_steps=STEPS, interval=INTERVAL, forecaster="linear"):
        optimizer.zero_grad()
        model(torch.ones(1, 8)).sum().backward()
        try:
            optimizer.step()
        except RanksDiffer as error:
            told = str(error)
    return {"told": told}


def refused(rank: int) -> list[str]:
    """What each rank is told of arguments that rank 0 alone looks at, and of a server that refuses the job."""
    told = []
    for options in ({"forecaster": "oracle"}, {"policy": FixedHorizon(10**6)}, {"server": ShiftingEndpoint(fail=_refuse)}):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        try:
            with Nowcast(model, optimizer, max_steps=STEPS, interval=INTERVAL, **{"forecaster": "nino", **options}):
                pass
        except BadArgument as error:
            told.append(str(error))
    return told


def train_alone(rank: int) -> dict[str, Any]:
    """Ranks that train a model each, on purpose: every one is a group of its own."""
    groups = [dist.new_group([member]) for member in range(dist.get_world_size())]
    model = network(seed=rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    endpoint = ShiftingEndpoint()
    with Nowcast(model, optimizer, server=endpoint, max_steps=STEPS, interval=INTERVAL, jump=WHOLE, process_group=groups[rank]):
        for _ in range(PERIOD):
            optimizer.zero_grad()
            model(torch.ones(1, 8)).sum().backward()
            optimizer.step()
    return {"forecast": endpoint.sent[PERIOD] + 0.01 * 40, "weights": flat(model)}


def compared(rank: int) -> dict[str, Any]:
    """The options of a run that compares three horizons; rank 1 finds the second best, rank 0 the third, by less."""
    policy = BestAfterRecovery(FixedHorizon(4))
    return {"policy": policy, "probe": Preferring(rank), "guard": Guard(recovery=4, budget=1.0)}


def train_sharded(rank: int, **given: Any) -> dict[str, Any]:
    """The same run, data-parallel and split over the ranks by `fully_shard`, with quiet snapshots, jumps and a rollback."""
    told: dict[str, Any] = {"weights": {}, "events": {}}
    for sharded in (False, True):
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(nn.Linear(8, 17), nn.ReLU(), nn.Linear(17, 3))  # neither splits evenly
        wiring = wire(model)
        replica: nn.Module = model if sharded else DistributedDataParallel(model)
        if sharded:
            fully_shard(model[0])
            fully_shard(model)
            told["parts"] = [parameter.to_local().shape for parameter in model.parameters()]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        options: dict[str, Any] = {"forecaster": "linear", "policy": FixedHorizon(2), "interval": 4, "context": CONTEXT}
        if sharded:
            try:
                Nowcast(model, optimizer, max_steps=100, **options)
            except BadArgument as error:
                told["refused"] = str(error)
        options |= {"quiet": 3, "jump": Jump(scale=0.5, moments="reset"), "guard": Guard(recovery=4)}

        def probe(replica: nn.Module = replica) -> float:
            replica(torch.ones(4, 8))  # as probes do; what FSDP gathers for it, the average, must not stay
            return 2.0 if rank == 1 and nowcast.step >= 40 and nowcast._cycle._trials._trial else 1.0

        options["probe"] = probe
        weights = []
        options |= given
        with Nowcast(replica, optimizer, max_steps=100, wiring=wiring, **options) as nowcast:
            if isinstance(options["probe"], Preferring):
                options["probe"].nowcast = nowcast
            for index in range(50):
                inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(2 * index + rank))
                optimizer.zero_grad()
                functional.cross_entropy(replica(inputs), (inputs.sum(1) > 0).long()).backward()
                optimizer.step()
                weights.append(torch.cat([whole(parameter).detach().reshape(-1) for parameter in model.parameters()]))
        told["weights"][sharded] = torch.stack(weights)
        told["events"][sharded] = [(event.step, event.outcome) for event in nowcast.events]
        told["horizons"] = [event.horizon for event in nowcast.events]
    return told


def jump_large(rank: int) -> dict[str, Any]:
    """One snapshot after the other, and a jump, of 8 layers of 4 MiB; the most memory that takes."""
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(8)))
    wiring = wire(model)
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    endpoint = ShiftingEndpoint()
    with Nowcast(
        model, optimizer, server=endpoint, max_steps=100, interval=1, context=2, wiring=wiring, jump=WHOLE, policy=FixedHorizon(1)
    ):
        model(torch.zeros(1, 1024)).sum().backward()
        optimizer.step()
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
        before = memory_bytes("VmRSS")
        optimizer.step()
        peak = memory_bytes("VmHWM")
    first = float(whole(model[3].weight).detach()[0, 0])
    return {"bytes": peak - before, "moved": first - float(endpoint.sent[2][3 << 20]) if rank == 0 else 0.0}


def memory_bytes(which: str) -> int:
    """Of this process, as the kernel counts it."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(which))
    return int(line.split()[1]) * 1024


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """All of a parameter, wherever it is."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


class Spoilt:
    """A probe that finds the first jump bad, and all from then on, on rank 1 alone."""

    def __init__(self, rank: int) -> None:
        self.rank, self.calls = rank, 0

    def __call__(self) -> float:
        self.calls += 1
        return 3.0 if self.rank == 1 and self.calls > 1 + PERIOD // (INTERVAL // 2) else 1.0


class Preferring:
    """A probe that finds one horizon of three better than the course, and another worse; which ones depends on the rank."""

    def __init__(self, rank: int) -> None:
        self.losses = {4: 0.98, 2: 1.0, 1: 0.95} if rank == 0 else {4: 0.98, 2: 0.8, 1: 1.0}
        self.nowcast: Nowcast | None = None

    def __call__(self) -> float:
        assert self.nowcast is not None
        trial = self.nowcast._cycle._trials._trial
        return self.losses[trial.horizon] if trial else 1.0


def _refuse(call: str) -> None:
    raise BadRequest("no such jobs here", field="job")


def _fail(call: str) -> None:
    if call == "forecast":
        raise Unavailable("gone")
