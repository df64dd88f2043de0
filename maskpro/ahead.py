"""Values made ahead by threads, while something else is at work."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Ahead(Generic[K, V]):
    """Values of a function by key, each taken once; what was not foreseen is made when it is taken."""

    def __init__(self, threads: int):
        self._pool = ThreadPoolExecutor(threads)
        self._made: dict[K, Future[V]] = {}

    def take(self, key: K, make: Callable[[K], V]) -> V:
        """The function's value of the key."""
        made = self._made.pop(key, None)
        return make(key) if made is None else made.result()

    def foresee(self, keys: Iterable[K], make: Callable[[K], V]) -> None:
        """Begin with the values of those keys that are not being made yet."""
        for key in keys:
            if key not in self._made:
                self._made[key] = self._pool.submit(make, key)

    def drop(self) -> None:
        """Wait until no thread is at work, and forget what they made."""
        wait(self._made.values())
        self._made.clear()
