"""Data-parallel training: rank 0 decides, all ranks push alike."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn.parallel import DataParallel, DistributedDataParallel

from trainer_worker.errors import BadArgument, RanksDiffer

REASON_LETTERS: Final = 64
DIGEST_CHUNK: Final = 2**20


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside `DistributedDataParallel`, `DataParallel` and `torch.compile`."""
    while True:
        if isinstance(model, DistributedDataParallel | DataParallel):
            model = model.module
        elif isinstance(inner := getattr(model, "_orig_mod", None), nn.Module):
            model = inner
        else:
            return model


class Ranks:
    """The processes of a group (None: the default one) that train one model; one alone has nothing to agree on. Collectives run
    before training starts, at the first step and at each boundary; of a split model also at every snapshot.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self._group = group
        several = dist.is_available() and dist.is_initialized()
        self.rank: int = dist.get_rank(group) if several else 0
        self.world: int = dist.get_world_size(group) if several else 1

    def share(self, reason: str | None, vector: Tensor | None, *, size: int | None) -> tuple[str, Tensor | None]:
        """Tell all ranks what came of a nowcast, in one broadcast: why there is no forecast (empty if there is one),
        or the forecast (size,) float32, known to rank 0. Without a size rank 0 keeps the vector, and scatters it later.
        """
        if self.world == 1:
            assert reason is not None
            return reason, vector
        device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend(self._group) == "nccl" else "cpu"
        packet = torch.zeros(REASON_LETTERS + (size or 0), dtype=torch.float32, device=device)
        letters = (reason or "").encode()[:REASON_LETTERS]
        packet[: len(letters)] = torch.tensor(list(letters), dtype=torch.float32)
        if size is not None and vector is not None:
            packet[REASON_LETTERS:] = vector
        dist.broadcast(packet, src=0 if self._group is None else dist.get_global_rank(self._group, 0), group=self._group)
        packet = packet.cpu()
        told = bytes(int(letter) for letter in packet[:REASON_LETTERS].tolist()).rstrip(b"\0").decode()
        return told, vector if size is None else packet[REASON_LETTERS:]

    @contextmanager
    def failing_alike(self) -> Iterator[None]:
        """Raise what one rank meets inside on all, who would wait for it: a `BadArgument` as such, else a `RuntimeError`."""
        if self.world == 1:
            yield
            return
        mine: Exception | None = None
        try:
            yield
        except Exception as error:  # noqa: BLE001 -- raised again below
            mine = error
        told = self._gather(mine and (getattr(mine, "argument", None), getattr(mine, "detail", repr(mine))))
        if mine is not None:
            raise mine
        for rank, (argument, detail) in ((rank, theirs) for rank, theirs in enumerate(told) if theirs):
            raise BadArgument(argument, detail) if argument else RuntimeError(f"rank {rank}: {detail}")

    def check_alike(self, facts: dict[str, Any], parameters: Iterable[Tensor]) -> None:
        """Compare settings and weights with the other ranks. Raises `RanksDiffer`: on every rank, naming what differs."""
        if Ranks(self._group).world != self.world:
            raise RanksDiffer("torch.distributed was initialised after this Nowcast was made: make it afterwards, on every rank")
        if self.world == 1:
            return
        mine = {name: repr(value) for name, value in facts.items()} | {"weights": repr(sum(map(_digest, parameters)))}
        told = self._gather(mine)
        if differing := [name for name in mine if len({theirs[name] for theirs in told}) > 1]:
            detail = f"ranks differ in {', '.join(differing)}; give all of them the same arguments and the same checkpoint"
            raise RanksDiffer(f"{detail}, or pass process_group= with the ranks that train this model together")

    def _gather(self, mine: Any) -> list[Any]:
        told = [None] * self.world
        dist.all_gather_object(told, mine, group=self._group)
        return told


@torch.no_grad()
def _digest(parameter: Tensor) -> int:
    """Of the bits of a tensor, on its device: 0.0 and -0.0 differ, the order of values counts. Chunk by chunk, to spare memory."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[parameter.element_size()]
    values = parameter.detach().contiguous().view(-1).view(bits)
    places = torch.arange(1, min(DIGEST_CHUNK, values.numel()) + 1, device=values.device)
    total = 0
    for number, chunk in enumerate(torch.split(values, DIGEST_CHUNK), start=1):
        total += number * int((chunk.to(torch.int64) * places[: len(chunk)]).sum().item())
    return total
