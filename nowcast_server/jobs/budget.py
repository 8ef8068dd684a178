"""Memory budgets: reserve before use, with a limit for each tenant."""

import threading
from collections import Counter
from collections.abc import Callable
from typing import Final

from protos.errors import OutOfMemoryBudget

SHARE: Final = 0.5  # of the memory of forecasts and of registrations, for one tenant beside others

KEPT: Final = ""  # in a tenant's place, for what is never given back


class Budget:
    """So many bytes, taken and given back by any thread. One tenant may have `tenant_bytes` of them (None: all), and by `lend` this
    `share`, but any amount if it has nothing yet. `on_return` is called when bytes have come back.
    """

    def __init__(
        self, limit_bytes: int, *, tenant_bytes: int | None = None, share: float = 1.0, on_return: Callable[[], None] = lambda: None
    ) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._tenant_bytes = limit_bytes if tenant_bytes is None else tenant_bytes
        self.share = share
        self._on_return = on_return
        self.used = Counter[str]()  # by tenant
        self._lock = threading.RLock()

    def left_bytes(self, tenant: str | None = None) -> int:
        """Left of a tenant's limit, or of the whole."""
        return self.limit_bytes - self.used_bytes if tenant is None else self._tenant_bytes - self.used[tenant]

    def check(self, size_bytes: int, *, what: str, tenant: str | None = None, now: bool = False) -> None:
        """Raise OutOfMemoryBudget if so many bytes will never be had, of a tenant's limit or of the whole; or not `now`. How many
        are left then is not said: others' use is their own.
        """
        most_bytes = self.limit_bytes - self.used[KEPT] if tenant is None else self._tenant_bytes
        if size_bytes > (self.left_bytes(tenant) if now else most_bytes):
            why = f"more than are left of {most_bytes}" if now else f"there are {most_bytes} in all"
            raise OutOfMemoryBudget(f"{what} needs {size_bytes} bytes; {why}", needed_bytes=size_bytes, limit_bytes=most_bytes)

    def take(self, tenant: str, size_bytes: int) -> None:
        """Set bytes aside that `check` has found."""
        with self._lock:
            self.used_bytes += size_bytes
            self.used[tenant] += size_bytes

    def lend(self, tenant: str, size_bytes: int) -> bool:
        """Set bytes aside, if they are to be had now within the tenant's share."""
        with self._lock:
            lent = self.used[tenant]
            within = lent + size_bytes <= self.share * (self.limit_bytes - self.used[KEPT])
            if (lent and not within) or size_bytes > self.left_bytes():
                return False
            self.take(tenant, size_bytes)
            return True

    def give(self, tenant: str, size_bytes: int) -> None:
        with self._lock:
            self.used_bytes -= size_bytes
            self.used[tenant] -= size_bytes
            self.used += Counter()  # drops those that have nothing
        self._on_return()


class Loan:
    """Memory of one piece of work. Its caller may leave while the device still works on it: the last to let go gives it back."""

    def __init__(self, memory: Budget, *, tenant: str, size_bytes: int) -> None:
        self._memory, self._tenant, self._size_bytes = memory, tenant, size_bytes
        self._holders = 1
        self._taken = False
        self._lock = threading.Lock()

    def begin(self) -> bool:
        """Take the memory, once; False if it is not to be had now, or not needed any more."""
        with self._lock:
            self._taken = self._taken or (self._holders > 0 and self._memory.lend(self._tenant, self._size_bytes))
            return self._taken

    def hold(self) -> None:
        with self._lock:
            self._holders += 1

    def end(self) -> None:
        with self._lock:
            self._holders -= 1
            returned = self._taken and not self._holders
        if returned:
            self._memory.give(self._tenant, self._size_bytes)
