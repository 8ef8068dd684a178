"""The cache of graphs and features: bounded, and fair to what is used."""

from concurrent.futures import ThreadPoolExecutor

from nowcast_server.nino.cache import LruCache


def test_what_was_used_last_is_kept() -> None:
    """A server with many jobs would make the graph of its busiest job again and again, or run out of memory."""
    cache = LruCache[list[int]](5, weigh=len)
    first = cache.get("a", lambda: [1, 1])
    cache.get("b", lambda: [2, 2])
    assert cache.get("a", lambda: [9]) is first
    cache.get("c", lambda: [3, 3])  # six in all: the one unused for longest goes
    assert cache.get("a", lambda: [9]) is first
    assert cache.get("b", lambda: [9]) == [9]
    large = cache.get("large", lambda: [2] * 100)  # the newest, however large
    assert cache.get("large", list) is large
    assert len(cache._values) == 1


def test_threads_get_one_value() -> None:
    """Two forecasts at once would corrupt the cache's bookkeeping."""
    cache = LruCache[list[int]](50, weigh=len)
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(lambda index: cache.get(str(index % 80), lambda: [index % 80]), range(4000)))
    assert [value[0] for value in got] == [index % 80 for index in range(4000)]
    assert len(cache._values) == 50
