"""Tables of values per calibration sample that the trials of a search share: made by whoever needs a part first.

Imports nothing heavy: the process that keeps the tables has this module and NumPy alone.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import numpy as np
import ray

# A name of a table and the number of its part.
PartKey = tuple[Hashable, int]


class TableKeeper:
    """Holds the parts in Ray's object store, from which each node's processes read them without a copy of their own."""

    def __init__(self) -> None:
        self._parts: dict[PartKey, ray.ObjectRef] = {}

    def get(self, key: PartKey) -> list[ray.ObjectRef]:
        """The part, or nothing; in a list, so that Ray hands over the reference and not the part."""
        return [self._parts[key]] if key in self._parts else []

    def put(self, key: PartKey, values: np.ndarray) -> None:
        """Keep a part, which is owned from here: it outlives the process that has made it."""
        if key not in self._parts:
            self._parts[key] = ray.put(values)


def start_keeper() -> Any:
    """A new keeper, an actor that takes no resources."""
    return ray.remote(num_cpus=0)(TableKeeper).remote()
