"""The curves that a trial writes for TensorBoard."""

import math
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from maskpro.curves import Curves


def read(file):
    """The events of a file: each is framed by its length, a checksum of that, and a checksum of its own."""
    content, events = file.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


@pytest.mark.parametrize("as_uri", [False, True])
def test_the_storage_has_every_report_up_to_the_last_checkpoint(tmp_path, as_uri):
    stored = tmp_path / "trials" / "trial_00001"
    curves = Curves(stored.as_uri() if as_uri else str(stored), {"lr": 0.5, "layout": "channel"})
    curves.write()
    assert not stored.exists(), "no report"
    for samples in (100, 200):
        curves.add({"num_samples_seen": samples, "val_error": 1 / samples, "train_loss": math.nan, "failure": ""})
        curves.write()
        (file,) = stored.iterdir()
        found = [(event.step, value.tag, value.simple_value) for event in read(file) for value in event.summary.value]
        errors = [(step, value) for step, tag, value in found if tag == "val_error"]
        assert errors == [(count, pytest.approx(1 / count)) for count in range(100, samples + 1, 100)]
        assert "train_loss" not in {tag for _, tag, _ in found}, "it has no value"
    assert sum(tag.startswith("_hparams_") for _, tag, _ in found) == 3, "what TensorBoard compares trials by"
