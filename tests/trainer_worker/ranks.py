"""What the processes of `test_distributed.py` run, and how to start them."""

import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from small_runs import STEADY, STEPS, ScriptedEndpoint, adam, flat, make, network
from torch import distributed as dist
from torch import multiprocessing, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel
from torch.utils._python_dispatch import TorchDispatchMode, is_traceable_wrapper_subclass_type
from torch.utils._pytree import tree_leaves

from protos.errors import BadRequest, DeadlineExceeded, Unavailable
from trainer_worker import Nowcast
from trainer_worker.endpoints.server import Server
from trainer_worker.errors import BadArgument, RanksDiffer


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
        "failing": train(rank, {"server": ScriptedEndpoint(fail=_fail)}),
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
    told["refused"] = refused(rank)
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
            wait_on_rank_0(nowcast)
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


def wait_on_rank_0(nowcast: Nowcast) -> None:
    """Until its answer is there; the other ranks wait for it in their next collective."""
    request = nowcast._boundaries._asked
    if request is not None:
        assert request.done.wait(300)


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


def refused(rank: int) -> list[str]:
    """What each rank is told of arguments that rank 0 alone looks at, and of a server that refuses the job."""
    told = []
    for options in ({"server": None, "forecaster": "oracle"}, {"server": ScriptedEndpoint(fail=_refuse)}):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
        try:
            with make(model, optimizer, **{"endpoint": options.pop("server"), **options}):
                pass
        except BadArgument as error:
            told.append(str(error))
    return told


def train_alone(rank: int) -> dict[str, Any]:
    """Ranks that train a model each, on purpose: every one is a group of its own."""
    groups = [dist.new_group([member]) for member in range(dist.get_world_size())]
    model = network(seed=rank)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-2)
    with make(model, optimizer, ScriptedEndpoint(), process_group=groups[rank]) as nowcast:
        for _ in range(STEPS):
            optimizer.zero_grad()
            model(torch.ones(1, 8)).sum().backward()
            optimizer.step()
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


def refusal(model: nn.Module, *, forecaster: str = "linear") -> str:
    """Why a model is not taken."""
    try:
        make(model, adam(model), None, forecaster=forecaster)
    except BadArgument as error:
        return str(error)
    return ""


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made inside it and alive at once: `most`."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0
        self._bytes: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(map(is_traceable_wrapper_subclass_type, types)):
            return NotImplemented  # of a split tensor, what is done with this rank's part comes here again
        out = func(*args, **(kwargs or {}))
        given = {StorageWeakRef(each.untyped_storage()) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        made = [each.untyped_storage() for each in tree_leaves(out) if type(each) is torch.Tensor]
        self._bytes |= {ref: each.nbytes() for each in made if (ref := StorageWeakRef(each)) not in given}
        self._bytes = {ref: count for ref, count in self._bytes.items() if not ref.expired()}
        self.most = max(self.most, sum(self._bytes.values()))
        return out


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
        wait_on_rank_0(nowcast)
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


def _refuse(call: str) -> None:
    raise BadRequest("no such jobs here", field="job")


def _late(call: str) -> None:
    if call == "forecast":
        time.sleep(0.1)  # longer than all the rest of an interval
        raise DeadlineExceeded("too slow")


def _fail(call: str) -> None:
    if call == "forecast":
        raise Unavailable("gone")
