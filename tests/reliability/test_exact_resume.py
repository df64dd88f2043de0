"""A trial that is saved at any step and resumed in another process ends bit for bit as the one that went through.

The short form is in one process: `test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit` and
`test_every_setting_resumes_bit_for_bit` in tests/test_trainer.py.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from maskpro.files import write_json
from maskpro.names import ESTIMATORS
from maskpro.schedule.checkpoints import COUNTERS_FILE, part_file, read_counters, read_part, write_checkpoint
from maskpro.schedule.history import PARTS

TESTS = Path(__file__).parents[1]
STEP, BUDGET = 8, 96


def trained(estimator, folder, start=None):
    """Train from a checkpoint, or from the beginning, to the end; a checkpoint and the samples' order after each step."""
    sys.path.insert(0, str(TESTS))
    from shared_fixtures import make_trainer, seeded_unet, with_few_held_out

    from maskpro.objectives.diffusion import DiffusionObjective
    from maskpro.workloads import open_workload

    torch.set_num_threads(1)
    network = seeded_unet(sample_size=8, in_channels=1, out_channels=1)
    workload = with_few_held_out(replace(open_workload("digits"), model=network))
    target = "noise" if estimator == "policy_gradient" else "teacher"
    trainer = make_trainer(
        workload, estimator=estimator, target=target, lr=2.0, budget_samples=BUDGET, batch_size=STEP, graphs=False
    )
    if start is not None:
        trainer.load_state_dict({part: read_part(start, part) for part in PARTS}, read_counters(start))
    order = []
    drawn = DiffusionObjective.batch

    def batch(self, indices):
        if len(indices) == STEP:  # the teacher's outputs are made in larger batches, once a process
            order.append(indices.tolist())
        return drawn(self, indices)

    DiffusionObjective.batch = batch
    try:
        while not trainer.finished:
            trainer.train(STEP)
            trainer.validate()
            place = folder / f"{trainer.num_samples_seen}"
            place.mkdir(parents=True)
            write_checkpoint(place, *trainer.state_dict())
            write_json(place / "order.json", order)
            order.clear()
    finally:
        DiffusionObjective.batch = drawn


@pytest.mark.full
@pytest.mark.slow
@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_a_trial_is_resumed_in_another_process_bit_for_bit(estimator, tmp_path):
    trained(estimator, tmp_path / "whole")
    starts = [str(samples) for samples in range(STEP, BUDGET, STEP)]
    command = [sys.executable, __file__, estimator, str(tmp_path), *starts]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS.parent), str(TESTS)])}
    subprocess.run(command, check=True, env=environment, timeout=600)
    whole = tmp_path / "whole"
    for start in starts:
        ends = sorted((tmp_path / f"from_{start}").iterdir(), key=lambda path: int(path.name))
        assert [path.name for path in ends] == [str(samples) for samples in range(int(start) + STEP, BUDGET + 1, STEP)]
        for end in ends:
            expected = whole / end.name
            for part in PARTS:
                first, second = (load_file(folder / part_file(part)) for folder in (expected, end))
                assert first.keys() == second.keys()
                for name, value in first.items():
                    assert torch.equal(value, second[name]), (start, end.name, part, name)
            for name in (COUNTERS_FILE, "order.json"):
                assert json.loads((end / name).read_text()) == json.loads((expected / name).read_text())


if __name__ == "__main__":
    _, estimator, folder, *starts = sys.argv
    for start in starts:
        trained(estimator, Path(folder) / f"from_{start}", start=Path(folder) / "whole" / start)
