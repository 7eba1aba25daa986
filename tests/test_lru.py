"""What is kept, up to a bound."""

from __future__ import annotations

import os
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from fastrank.lru import LRU


def kept(cache: LRU[Any, Any]) -> list[Any]:
    """Its keys, from that not used for longest."""
    assert len(cache) == len(cache._entries)
    assert cache.weight == sum(weight for _, weight in cache._entries.values())
    return list(cache._entries)


@pytest.mark.parametrize("bounds", [{"weight": 3}, {"entries": 3}, {"weight": 3, "entries": 99}])
def test_what_was_not_used_for_longest_goes(bounds: dict[str, int]) -> None:
    cache = LRU[str, int](**bounds)
    for at, key in enumerate("abc"):
        cache.put(key, at)
    assert cache.get("a") == 0
    cache.put("b", 10)
    cache.put("d", 3)
    assert kept(cache) == ["a", "b", "d"]
    assert cache.get("c") is None
    assert cache.get("c", "none") == "none"
    assert cache.get("b") == 10


def test_weights_are_bounded() -> None:
    cache = LRU[Any, str](10_500)
    for key in range(100):
        cache.put(key, str(key), 1500)
        assert cache.weight <= 10_500
    assert kept(cache) == list(range(93, 100))
    cache.put(99, "again", 2500)
    assert cache.get(99) == "again"
    cache.put("large", "large", 20_500)  # not at the price of all others
    assert cache.get("large") is None
    assert len(kept(cache)) == 6
    cache.put(99, "too large", 20_500)  # and not what stood there before
    assert cache.get(99) is None
    cache.put("whole", "whole", 10_500)
    assert kept(cache) == ["whole"]


@pytest.mark.parametrize("bounds", [{"weight": 0}, {"entries": 0}])
def test_nothing_is_kept_where_nothing_may(bounds: dict[str, int]) -> None:
    cache = LRU[str, int](**bounds)
    cache.put("a", 1)
    assert kept(cache) == []


def test_none_is_a_value() -> None:
    cache = LRU[str, None]()
    cache.put("a", None)
    assert cache.get("a", "otherwise") is None


def test_against_a_list() -> None:
    """10,000 random calls, held to the obvious way to do it."""
    rng = np.random.default_rng(0)
    cache, expected = LRU[int, int](50, entries=12), list[tuple[int, int, int]]()
    for at in range(10_000):
        key, weight = int(rng.integers(30)), int(rng.integers(60) if at % 3 else 3)
        found = [entry for entry in expected if entry[0] == key]
        if rng.random() < 0.5:
            assert cache.get(key) == (found[0][1] if found else None)
            expected = [entry for entry in expected if entry[0] != key] + found
        else:
            cache.put(key, at, weight)
            expected = [entry for entry in expected if entry[0] != key]
            if weight <= 50:
                expected.append((key, at, weight))
            while sum(entry[2] for entry in expected) > 50 or len(expected) > 12:
                expected.pop(0)
        assert kept(cache) == [entry[0] for entry in expected]


def test_threads_share_one() -> None:
    cache = LRU[int, int](20, entries=9)

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for key in rng.integers(40, size=5_000).tolist():
            assert cache.get(key) in (None, 2 * key)
            cache.put(key, 2 * key, key % 7)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    kept(cache)


@contextmanager
def handling(handler: Any, seconds: float) -> Any:
    before = signal.signal(signal.SIGVTALRM, lambda *_: handler())
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def test_signals_find_it_whole() -> None:
    """A handler that uses it, and one that ends the call, some hundred times each."""

    class Enough(Exception):  # noqa: N818  # it ends a call, and is no error
        pass

    cache, turns = LRU[int, int](5), 0

    def handler() -> None:
        nonlocal turns
        turns += 1
        for key in range(8):
            cache.put(key, key)
        kept(cache)
        if turns % 2:
            raise Enough

    signal.alarm(60)  # should it wait for itself
    with handling(handler, 0.002):
        while turns < 200:
            try:
                for key in range(1_000_000):
                    cache.put(key % 8, key, 1)
                    cache.get((key + 3) % 8)
            except Enough:
                pass
    signal.alarm(0)
    kept(cache)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system cannot fork")
def test_a_child_forked_while_another_thread_is_in_it_is_not_stuck() -> None:
    """The child is killed if it hangs."""
    cache = LRU[str, int](1)
    locked, done = threading.Event(), threading.Event()

    def hold() -> None:
        with cache._lock:
            cache._entries["a"] = 1, 1  # and is not counted yet
            locked.set()
            done.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    locked.wait()
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        cache.put("b", 2)
        os._exit(0 if kept(cache) == ["b"] else 1)
    done.set()
    thread.join()
    assert os.waitpid(child, 0)[1] == 0
