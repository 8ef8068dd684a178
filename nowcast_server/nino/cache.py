"""A bounded cache that several threads may use."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, TypeVar

Value = TypeVar("Value")


class LruCache(Generic[Value]):
    """Keeps the values used last, as long as all `weigh` no more than `capacity` together; the newest is always kept."""

    def __init__(self, capacity: int, *, weigh: Callable[[Value], int] = lambda _: 1) -> None:
        self._values: OrderedDict[str, Value] = OrderedDict()
        self._capacity, self._weigh, self._weight = capacity, weigh, 0
        self._lock = threading.Lock()

    def get(self, key: str, make: Callable[[], Value]) -> Value:
        """The value under `key`, made if need be: outside the lock, so that two threads may make it twice, to no harm."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
        value = make()
        with self._lock:
            if key not in self._values:
                self._values[key] = value
                self._weight += self._weigh(value)
            while self._weight > self._capacity and len(self._values) > 1:
                self._weight -= self._weigh(self._values.popitem(last=False)[1])
            return self._values.get(key, value)
