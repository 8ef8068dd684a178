"""Sharing one forecast between processes: what they exchange, and nothing else.

Every process holds the snapshots and the plan and walks its own groups of units. Of a convolution it needs the others' sums, a few
vectors a neuron; then each brings the neurons up to date for itself. Sums are added in the order of the groups wherever they
were made, so the forecast is that of one process, bit for bit on CPUs.
"""

from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from torch import Tensor, distributed

from nowcast_server.nino.engine.kernels import Sums


class Exchange(Protocol):
    """How processes that make the same forecast together talk to each other."""

    def owns(self, index: int) -> bool:
        """Whether this process computes the group `index`."""

    def share(self, empty: Iterable[Callable[[], Sums]], own: Iterator[Sums]) -> Iterator[Sums]:
        """The sums of all groups in their order, given those of the own groups in theirs; `empty` makes room for each group's."""

    def prepare(self, out: Tensor) -> None:
        """Called with the room for all forecasts, not initialised, before any is put there."""

    def merge(self, out: Tensor) -> None:
        """Complete `out`, in which this process has put the forecasts of its own groups."""


class Alone:
    """One process computes everything."""

    def owns(self, index: int) -> bool:
        del index
        return True

    def share(self, empty: Iterable[Callable[[], Sums]], own: Iterator[Sums]) -> Iterator[Sums]:
        del empty
        return own

    def prepare(self, out: Tensor) -> None:
        del out

    def merge(self, out: Tensor) -> None:
        del out


class Distributed:
    """The processes of a `torch.distributed` group, gloo or NCCL, all of which call `forecast` alike and all of which get it.

    Args:
        group: the processes; None for all.
    """

    def __init__(self, group: distributed.ProcessGroup | None = None) -> None:
        self._group = group
        self._rank, self._size = distributed.get_rank(group), distributed.get_world_size(group)

    def owns(self, index: int) -> bool:
        return index % self._size == self._rank

    def share(self, empty: Iterable[Callable[[], Sums]], own: Iterator[Sums]) -> Iterator[Sums]:
        made = list(own)  # all of them first: a process that waited for another's group would not compute meanwhile
        mine = iter(made)
        for index, room in enumerate(empty):
            sums = next(mine) if self.owns(index) else room()
            for tensor in (sums.hidden, sums.modulated):
                distributed.broadcast(tensor, group=self._group, group_src=index % self._size)
            yield sums

    def prepare(self, out: Tensor) -> None:
        out.zero_()

    def merge(self, out: Tensor) -> None:
        distributed.all_reduce(out, group=self._group)
