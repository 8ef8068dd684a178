"""Large registrations: parsing one takes thirty times its size, so they are parsed one at a time, in fair turns."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Final

from nowcast_server.jobs.loans import Lender
from protos.errors import Busy

LARGE_BYTES: Final = 64 * 1024
"""From here on a registration waits for its turn; smaller ones are read at once, on the event loop."""
BODIES: Final = 16
"""Of the largest kind, on their way or waiting for their turn, that there is memory for: half of it for one tenant."""


class Registrations:
    """Used on the event loop only.

    Args:
        bodies: memory for those on their way.
    """

    def __init__(self, bodies: Lender) -> None:
        self._bodies = bodies
        self._turn = asyncio.Lock()  # serves those who wait in the order they came
        self._tenants: dict[str, asyncio.Lock] = {}

    @contextmanager
    def receiving(self, tenant: str, size_bytes: int) -> Iterator[None]:
        """Set the memory of a body aside, before any of it is read.

        Raises:
            Busy: others, or the tenant's own, have it.
        """
        if size_bytes <= LARGE_BYTES:
            yield
            return
        if not self._bodies.lend(tenant, size_bytes):
            raise Busy("too many large registrations at once; try again", retry_after_s=2)
        try:
            yield
        finally:
            self._bodies.take_back(tenant, size_bytes)

    @asynccontextmanager
    async def reading(self, tenant: str, size_bytes: int) -> AsyncIterator[None]:
        """Wait for the turn to read a body. Of each tenant one waits for it, the others for that one."""
        if size_bytes <= LARGE_BYTES:
            yield
            return
        mine = self._tenants.setdefault(tenant, asyncio.Lock())
        try:
            async with mine, self._turn:
                yield
        finally:
            if not mine.locked():
                self._tenants.pop(tenant, None)
