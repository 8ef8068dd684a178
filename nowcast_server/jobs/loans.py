"""The memory budget of nowcasts: reserved when one begins, released when its answer has been sent."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

from nowcast_server.jobs.budget import Budget

SHARE: Final = 0.5
"""Of the memory, that one tenant may have lent beside others; alone it may have a single nowcast of any size."""


class Lender:
    """Lends the memory of a budget. Any thread may use it.

    Args:
        memory: what there is.
        share: of it, for one tenant.
        on_return: called when memory has come back.
    """

    def __init__(self, memory: Budget, *, share: float, on_return: Callable[[], None]) -> None:
        self.memory = memory
        self.on_return = on_return
        self._share = share
        self._lent: Counter[str] = Counter()
        self._lock = threading.Lock()

    def lend(self, tenant: str, size_bytes: int) -> bool:
        """Take memory for a nowcast of the tenant; False if it cannot have so much now."""
        with self._lock:
            lent = self._lent[tenant]
            if (lent and lent + size_bytes > self._share * self.memory.most_bytes) or not self.memory.try_take(size_bytes):
                return False
            self._lent[tenant] += size_bytes
            return True

    def take_back(self, tenant: str, size_bytes: int) -> None:
        with self._lock:
            self._lent[tenant] -= size_bytes
            self._lent += Counter()  # drops those that have nothing
            self.memory.give(size_bytes)
        self.on_return()


class Loan:
    """Memory of one nowcast. Its caller may leave while the device still works on it: the last to let go gives it back.

    Args:
        lender: whose memory it is.
        tenant: who has it.
        size_bytes: how much.
    """

    def __init__(self, lender: Lender, *, tenant: str, size_bytes: int) -> None:
        self._lender, self._tenant, self._size_bytes = lender, tenant, size_bytes
        self._holders = 1
        self._taken = False
        self._lock = threading.Lock()

    def begin(self) -> bool:
        """Take the memory; False if it is not to be had now, or not needed any more."""
        with self._lock:
            self._taken = self._holders > 0 and self._lender.lend(self._tenant, self._size_bytes)
            return self._taken

    def hold(self) -> None:
        """One more needs it."""
        with self._lock:
            self._holders += 1

    def end(self) -> None:
        """One less needs it."""
        with self._lock:
            self._holders -= 1
            returned = self._taken and not self._holders
        if returned:
            self._lender.take_back(self._tenant, self._size_bytes)
