"""Tables of values per calibration sample that the trials of a search share; the first process to need a part makes it.

The module imports nothing heavy: the process that keeps the tables loads this module and NumPy alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import ray

# Name of a table and number of a part.
PartKey = tuple[Hashable, int]


class TableKeeper:
    """Holds the parts in Ray's object store; each node's processes read them from there without copies of their own."""

    def __init__(self) -> None:
        self._parts: dict[PartKey, ray.ObjectRef] = {}

    def get(self, key: PartKey) -> list[ray.ObjectRef]:
        """The part's reference in a list, or []; within a list Ray passes the reference and not the part."""
        return [self._parts[key]] if key in self._parts else []

    def put(self, key: PartKey, values: np.ndarray) -> None:
        """Keep a part. This actor owns it, so it outlives the process that made it."""
        if key not in self._parts:
            self._parts[key] = ray.put(values)


def start_keeper() -> Any:
    """A new keeper: an actor that takes no resources."""
    return ray.remote(num_cpus=0)(TableKeeper).remote()
