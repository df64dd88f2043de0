"""A trial's reports as curves for TensorBoard: the trial writes them, so that the driver need not."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pyarrow.fs import FileSystem
from tensorboardX.event_file_writer import EventsWriter
from tensorboardX.proto.event_pb2 import Event
from tensorboardX.proto.summary_pb2 import Summary
from tensorboardX.summary import hparams


class Curves:
    """The curves of one part of a trial, each over the samples seen.

    Args:
        folder: the part's folder in the storage, a path or a URI.
        params: parameters of the trial, by which TensorBoard compares trials.
    """

    def __init__(self, folder: str, params: Mapping[str, Any]):
        self._folder = folder
        self._params = {
            name: value if isinstance(value, bool | int | float) else str(value) for name, value in params.items()
        }
        self._events: list[Event] = []
        self._name = ""

    def add(self, metrics: Mapping[str, Any]) -> None:
        """Add a report."""
        values = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        for part in (*(() if self._events else hparams(self._params, values)), summary):
            self._events.append(Event(wall_time=time.time(), step=metrics["num_samples_seen"], summary=part))

    def write(self) -> None:
        """Write all reports so far, as one file."""
        if not self._events:
            return
        with TemporaryDirectory() as name:
            writer = EventsWriter(f"{name}/events")
            for event in self._events:
                writer.write_event(event)
            writer.close()
            (file,) = Path(name).iterdir()
            self._name = self._name or file.name
            content = file.read_bytes()
        filesystem, root = FileSystem.from_uri(self._folder)
        filesystem.create_dir(root, recursive=True)
        with filesystem.open_output_stream(f"{root}/{self._name}") as stream:
            stream.write(content)
