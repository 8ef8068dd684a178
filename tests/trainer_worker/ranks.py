"""What the processes of `test_distributed.py` run, and how to start them."""

import time
from datetime import timedelta
from itertools import repeat
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import torch
from alive import Alive
from small_runs import STEADY, STEPS, Fails, ScriptedEndpoint, adam, flat, make, network, settle, step
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from protos.errors import BadRequest, DeadlineExceeded, Unavailable
from trainer_worker import Nowcast
from trainer_worker.endpoints.server import Server
from trainer_worker.errors import BadArgument, RanksDiffer

REFUSE = Mock(side_effect=BadRequest("no such jobs here", field="job"))


def run_scenarios(folder: Path, url: str, *, world: int = 2) -> list[dict[str, Any]]:
    """Play all scenarios in `world` processes joined by gloo; what each rank has to tell, by scenario."""
    multiprocessing.spawn(_main, (folder, world, url), nprocs=world)
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _main(rank: int, folder: Path, world: int, url: str) -> None:
    torch.set_num_threads(1)
    early = network()
    too_early = make(early, (optimizer := adam(early)), ScriptedEndpoint())
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=world, timeout=timedelta(seconds=60)
    )
    embedded = {"forecaster": "linear"}
    told = {
        "wrapped": train(rank, embedded),
        "http": train(rank, {"server": Server(url, dtype="bfloat16", timeout_s=20), "forecaster": "linear"}),
        "failing": train(rank, {"server": ScriptedEndpoint(fail=Fails(forecast=repeat(Unavailable("gone"))))}),
        "late": train(rank, {"server": ScriptedEndpoint(fail=_late, local=False)}),
        "jump": train(rank, {**embedded, "mode": "jump", "interval": 1}),
        "shadow": train(rank, {**embedded, "mode": "shadow"}),
        "late shadow": train(rank, {"server": ScriptedEndpoint(fail=_late), "mode": "shadow"}),
        "unfrozen": train(rank, embedded, unfreeze_at=5),
        "stopped": train(rank, embedded, steps=15),
    }
    if rank == 0:
        torch.save(told["stopped"], folder / "checkpoint.pt")
    dist.barrier()
    told["resumed"] = train(rank, embedded, saved=torch.load(folder / "checkpoint.pt", weights_only=True))
    told["half resumed"] = half_resumed(rank, train(rank, embedded, steps=14)["nowcast"])
    told["early"] = first_step(too_early, early, optimizer)
    told["apart"] = train_apart(rank)
    told["refused"] = [refusal(network(), forecaster="oracle"), refusal(network(), ScriptedEndpoint(fail=REFUSE))]
    told["alone"] = train_alone(rank)
    told["sharded"] = train_sharded(rank)
    told["sharded bfloat16"] = train_sharded(rank, dtype=torch.bfloat16)
    told["large"] = glide_large(rank)
    torch.set_default_dtype(torch.float64)
    told["double"] = train(rank, embedded)
    torch.save(told, folder / f"{rank}.pt")
    dist.destroy_process_group()


def train(
    rank: int, options: dict[str, Any], *, steps: int = STEPS, saved: dict[str, Any] | None = None, unfreeze_at: int | None = None
) -> dict[str, Any]:
    """A data-parallel run, each rank on its own batches; weights at every step, broadcasts counted."""
    torch.manual_seed(0)
    model: nn.Module = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    model[0].requires_grad_(unfreeze_at is None)
    replica = DistributedDataParallel(model)
    replica.broadcast_buffers = False  # the argument has another name since torch 2.13
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    nowcast = make(replica, optimizer, None, **options)
    broadcasts = []
    broadcast = dist.broadcast
    dist.broadcast = lambda *args, **kwargs: (broadcasts.append(nowcast.steps), broadcast(*args, **kwargs))[1]
    weights = []
    if saved is not None:
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        nowcast.load_state_dict(saved["nowcast"])
    with nowcast:
        while nowcast.steps < steps:
            if nowcast.steps == unfreeze_at:
                model[0].requires_grad_(True)
            generator = torch.Generator().manual_seed(2 * nowcast.steps + rank)
            inputs = torch.randn(16, 8, generator=generator)
            optimizer.zero_grad()
            functional.cross_entropy(replica(inputs), (inputs.sum(1) > 0).long()).backward()
            if unfreeze_at is not None:
                average_gradients(model)
            optimizer.step()
            settle(nowcast)
            weights.append(flat(model))
    dist.broadcast = broadcast
    return {
        "weights": torch.stack(weights),
        "buffers": model[1].running_mean.clone(),
        "events": [event.to_dict() for event in nowcast.events if event.kind == "nowcast"],
        "broadcasts": broadcasts,
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "nowcast": nowcast.state_dict(),
    }


def average_gradients(model: nn.Module) -> None:
    """What `DistributedDataParallel` does not do for parameters that were frozen when it was made."""
    for parameter in model[0].parameters():
        if parameter.grad is not None:
            dist.all_reduce(parameter.grad)
            parameter.grad /= dist.get_world_size()


def first_step(nowcast: Nowcast, model: nn.Module, optimizer: torch.optim.Optimizer) -> str:
    """What a rank is told that cannot train with the others."""
    try:
        with nowcast:
            model(torch.ones(2, 8)).sum().backward()
            optimizer.step()
    except RanksDiffer as error:
        return str(error)
    return ""


def train_apart(rank: int) -> str:
    """Ranks that hold different weights."""
    model = network(seed=rank)
    optimizer = adam(model)
    return first_step(make(model, optimizer, None, forecaster="linear"), model, optimizer)


def half_resumed(rank: int, saved: dict[str, Any]) -> str:
    """Ranks of which one found its checkpoint, at the end of an interval, and the other only knows the step."""
    model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    nowcast = make(model, optimizer, None, forecaster="linear")
    if rank == 0:
        nowcast.load_state_dict(saved)
    else:
        nowcast.begin_at(14)
    for parameter in model.parameters():
        nn.init.ones_(parameter)
    return first_step(nowcast, model, optimizer)


def train_alone(rank: int) -> dict[str, Any]:
    """Ranks that train a model each, on purpose: every one is a group of its own."""
    groups = [dist.new_group([member]) for member in range(dist.get_world_size())]
    model = network(seed=rank)
    optimizer = adam(model)
    with make(model, optimizer, ScriptedEndpoint(), process_group=groups[rank]) as nowcast:
        for index in range(STEPS):
            step(model, optimizer, index)
    return {"used": nowcast.summary()["nowcasts"]["used"], "weights": flat(model)}


def train_sharded(rank: int, *, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """The same run, data-parallel and split over the ranks by `fully_shard`."""
    told: dict[str, Any] = {"weights": {}, "events": {}, "pushed": {}}
    for sharded in (False, True):
        torch.manual_seed(0)
        model: nn.Module = nn.Sequential(nn.Linear(8, 17), nn.ReLU(), nn.Linear(17, 3)).to(dtype)  # neither splits evenly
        replica: nn.Module = model if sharded else DistributedDataParallel(model)
        if sharded:
            told["refused"] = [refusal(FullyShardedDataParallel(network(), device_id=torch.device("cpu")))]
            fully_shard(model[0])
            told["refused"].append(refusal(model))
            fully_shard(model)
            told["refused"].append(refusal(model, forecaster="nino"))
            told["parts"] = [parameter.to_local().shape for parameter in model.parameters()]
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        weights = []
        nowcast = make(replica, optimizer, None, forecaster="linear").start()
        for index in range(STEPS):
            if index == 15:  # goes on as another one, from rank 0's state, which is all that frameworks save
                saved = [nowcast.state_dict()]
                dist.broadcast_object_list(saved, src=0)
                told["pushed"][sharded] = saved[0]["pushed"]["push"]
                nowcast.stop()
                nowcast = make(replica, optimizer, None, forecaster="linear")
                nowcast.load_state_dict(saved[0])
                nowcast.start()
            inputs = torch.randn(16, 8, generator=torch.Generator().manual_seed(2 * index + rank)).to(dtype)
            optimizer.zero_grad()
            functional.cross_entropy(replica(inputs), (inputs.sum(1) > 0).long()).backward()
            optimizer.step()
            weights.append(torch.cat([whole(parameter).detach().reshape(-1).clone() for parameter in model.parameters()]))
        nowcast.stop()
        told["weights"][sharded] = torch.stack(weights)
        told["events"][sharded] = [(event.step, event.outcome) for event in nowcast.events]
    return told


def refusal(model: nn.Module, endpoint: ScriptedEndpoint | None = None, *, forecaster: str = "linear") -> str:
    """Why a model is not taken: what each rank is told, though rank 0 alone looks at a forecaster's name and asks the server."""
    try:
        make(model, adam(model), endpoint, forecaster=forecaster).start()
    except BadArgument as error:
        return str(error)
    return ""


def glide_large(rank: int) -> dict[str, Any]:
    """One snapshot after the other, and a push, of 8 layers of 4 MiB; the most that is held in tensors for it."""
    model = nn.Sequential(*(nn.Linear(1024, 1024, bias=False) for _ in range(8)))
    for layer in model:
        fully_shard(layer)
    fully_shard(model)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    with make(model, optimizer, ScriptedEndpoint(), max_steps=100, interval=1, push=STEADY) as nowcast:
        for _ in range(5):
            model(torch.ones(1, 1024)).sum().backward()
            optimizer.step()
        optimizer.zero_grad()
        settle(nowcast)
        before = whole(model[3].weight).detach()[:4].clone()
        with Alive() as alive:
            optimizer.step()
            optimizer.step()
        if nowcast._forecasts is not None:
            nowcast._forecasts.buffers._rows = torch.empty(0, 0)  # as if a slow server read them all
        optimizer.step()
    moved = float((whole(model[3].weight).detach()[:4] - before).abs().max())
    return {"bytes": alive.most, "moved": moved, "dropped": nowcast.summary()["snapshots"]["dropped"]}


def whole(parameter: torch.Tensor) -> torch.Tensor:
    """All of a parameter, wherever it is."""
    return parameter.full_tensor() if isinstance(parameter, DTensor) else parameter


def _late(call: str) -> None:
    if call == "forecast":
        time.sleep(0.1)  # longer than all the rest of an interval
        raise DeadlineExceeded("too slow")
