"""Trials of a search on images that are mapped from a file."""

import threading
from dataclasses import replace
from pathlib import Path

import pytest
import ray
from shared_fixtures import RAY_IN_PROCESS

from maskpro.images import IMAGE_CACHE
from maskpro.machine.interruption import Interruption
from maskpro.search_options import SearchOptions
from maskpro.tuning.command import reopen_search
from maskpro.tuning.experiment import open_experiment, running_session
from maskpro.tuning.search import prepare_search
from maskpro.workloads.opening import open_images as open_workload

pytestmark = [*RAY_IN_PROCESS, pytest.mark.slow]

SPACE = """
from ray import tune
param_space = {"lr": tune.uniform(0.5, 4.0), "batch_size": 8, "dataset_size": 64}
seed_points = [{"lr": 1.0}, {"lr": 2.0}]
num_trials = 2
num_reports = 2
scheduler = "none"
workload = "cifar10"
"""


class Mapping:
    """Ray's processes that map a file while this is open, by their numbers."""

    def __init__(self, path):
        self.path, self.seen, self._over = str(path), set(), threading.Event()
        self._thread = threading.Thread(target=self._watch)

    def _watch(self):
        while not self._over.wait(0.1):
            for process in Path("/proc").iterdir():
                if process.name.isdecimal():
                    try:
                        named = (process / "cmdline").read_bytes().startswith(b"ray::")
                        if named and self.path in (process / "maps").read_text():
                            self.seen.add(int(process.name))
                    except OSError:  # it has ended, or is somebody else's
                        pass

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._thread.join()


def with_stored_images(search):
    """The search with its images in a file, as those of more than a gigabyte are."""
    options = search.options
    cache = options.results_dir / IMAGE_CACHE
    workload = open_workload("cifar10", model=options.model, data=options.data, image_cache=cache, in_memory_bytes=0)
    assert workload.images.stored is not None
    workload = replace(workload, budgets=replace(search.workload.budgets, validation_samples=32))
    seen = replace(workload, images=replace(workload.images, test=workload.images.test[:0]))
    return replace(search, workload=workload, context=replace(search.context, workload=seen))


def run_session(search, *, resume):
    """The numbers of the processes that map the images, and what the search's trials came to."""
    stored = search.workload.images.stored.path
    with open_experiment(search, resume=resume, extend=2 if resume else 0) as experiment:
        try:
            with Mapping(stored) as mapping, running_session(experiment, Interruption()) as session:
                assert session.run_search()
        finally:
            ray.shutdown()
        return mapping.seen, experiment.trials()


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="Linux alone tells what a process maps")
def test_trials_side_by_side_and_later_sessions_share_one_file_of_images(ray_cluster, tmp_path, model_folder, image_folder):
    (tmp_path / "space.py").write_text(SPACE)
    options = SearchOptions(
        space=tmp_path / "space.py",
        experiment="x",
        results_dir=tmp_path / "results",
        model=str(model_folder),
        data=image_folder,
        max_samples=64,
        frechet=False,
        sampling_steps=2,
        cpus_per_trial=0.5,
        max_concurrent=2,
        address=ray_cluster.address,
    )
    search = with_stored_images(prepare_search(options))
    file = search.workload.images.stored.path
    written = file.stat().st_mtime_ns
    processes, trials = run_session(search, resume=False)
    assert len(processes) >= 2, "each trial's process maps it"
    assert trials["status"].tolist() == ["completed"] * 2

    session = {"max_concurrent": 2, "address": ray_cluster.address}
    again = with_stored_images(reopen_search(tmp_path / "results" / "x", refused={}, session=session))
    processes, trials = run_session(again, resume=True)
    assert len(processes) >= 2
    assert trials["status"].tolist() == ["completed"] * 4
    files = [path for path in file.parent.iterdir() if path.suffix == ".npy"]
    assert (files, file.stat().st_mtime_ns) == ([file], written), "one file, made once"
