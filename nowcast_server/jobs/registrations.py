"""What a registration may ask for, and may cost: parsing a large one takes thirty times its size, so they take fair turns."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final
from weakref import WeakValueDictionary

import numpy as np
from numpy.lib.stride_tricks import as_strided

from nowcast_server.jobs.budget import Budget
from protos.errors import BadWiring, Busy, TooLarge
from protos.frames import DTYPE_BYTES
from protos.messages import JobSpec
from protos.wiring import STRUCTURE, Block, Wiring

LARGE_BYTES: Final = 64 * 1024  # from here on a registration waits for its turn; smaller ones are read at once, on the event loop
BODIES: Final = 16  # of the largest kind, on their way or waiting, that there is memory for: half of it for one tenant
STRUCTURE_PER_NEURON: Final = 64  # edges without weights, besides as many as there are weights: they cost time but no upload


class Registrations:
    """Turns, and memory for bodies on their way, of large registrations. Used on the event loop only."""

    def __init__(self, bodies: Budget) -> None:
        self._bodies = bodies
        self._turn = asyncio.Lock()  # serves those who wait in the order they came
        self._tenants = WeakValueDictionary[str, asyncio.Lock]()  # of those who read or wait

    @contextmanager
    def receiving(self, tenant: str, size_bytes: int) -> Iterator[None]:
        """Set the memory of a body aside, before any of it is read. Raise Busy if others, or the tenant's own, have it."""
        large = size_bytes > LARGE_BYTES
        if large and not self._bodies.lend(tenant, size_bytes):
            raise Busy("too many large registrations at once; try again", retry_after_s=2)
        try:
            yield
        finally:
            if large:
                self._bodies.give(tenant, size_bytes)

    @asynccontextmanager
    async def reading(self, tenant: str, size_bytes: int) -> AsyncIterator[None]:
        """Wait for the turn to read a body. Of each tenant one waits for it, the others for that one."""
        if size_bytes <= LARGE_BYTES:
            yield
            return
        mine = self._tenants.setdefault(tenant, asyncio.Lock())
        async with mine, self._turn:
            yield


def check_size(spec: JobSpec, *, max_snapshot_bytes: int) -> None:
    """Raise BadWiring for a network without parameters, TooLarge for a large snapshot or a graph out of all proportion to it."""
    wiring, size_bytes = spec.wiring, spec.wiring.size * DTYPE_BYTES[spec.dtype]
    if not wiring.size:
        raise BadWiring("the wiring's parameters hold no values", field="wiring.parameters")
    if size_bytes > max_snapshot_bytes:
        detail = f"a snapshot of {wiring.size} {spec.dtype} values has {size_bytes} bytes; this server takes {max_snapshot_bytes}"
        raise TooLarge(detail, field="wiring.parameters", limit_bytes=max_snapshot_bytes)
    neurons = 64 + 4 * wiring.size
    if wiring.neurons > neurons:
        raise TooLarge(f"{wiring.neurons} neurons for {wiring.size} weights; at most {neurons} make sense", field="wiring.neurons")
    structure, most = sum(b.edges for b in wiring.blocks if not b.size), wiring.size + STRUCTURE_PER_NEURON * wiring.neurons
    if structure > most:
        raise TooLarge(f"{structure} edges without weights; at most {most} make sense for this network", field="wiring.blocks")


def check_coverage(wiring: Wiring) -> None:
    """Raise BadWiring if a weight lies in two blocks: it would be counted for one in none. Takes a second for 10^9 values or so."""
    holding = defaultdict[int, list[Block]](list)
    for block in wiring.blocks:
        holding[block.parameter].append(block)
    holding.pop(STRUCTURE, None)
    for index, blocks in holding.items():
        parameter = wiring.parameters[index]
        seen = np.zeros(parameter.size, dtype=bool)
        for block in blocks:
            ends, strides = (block.sources, block.targets), (block.source_stride, block.target_stride)
            if block.diagonal:
                ends, strides = (block.sources,), (sum(strides),)  # type: ignore[assignment]  # of one dimension less
            # the wiring has made sure that all of them lie within the parameter
            as_strided(seen[block.offset :], (*ends, block.slots), (*strides, block.slot_stride))[...] = True
        if np.count_nonzero(seen) < sum(block.size for block in blocks):
            raise BadWiring(f"two edges hold the same weight of {parameter.name!r}", field="wiring.blocks")
