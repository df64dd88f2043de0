"""An experiment's folder between sessions, and the table of its trials."""

import errno
import fcntl
import json
import os
import pickle
import sys
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from maskpro.errors import MaskproError
from maskpro.files import atomic_path
from maskpro.schedule.history import History
from maskpro.schedule.lock import hold_lock
from maskpro.schedule.remnants import refuse_begun
from maskpro.search_options import SearchOptions
from maskpro.tuning.adapters import open_checkpoint, trial_folder
from maskpro.tuning.command import read_experiment
from maskpro.tuning.experiment import check_writable, open_experiment, tabulate_trials
from maskpro.tuning.monitor import trackers
from maskpro.tuning.search import prepare_search

SPACE = """
from ray import tune
param_space = {"lr": tune.uniform(0.5, 4.0), "batch_size": 32, "dataset_size": 512}
seed_points = [{"lr": 2.0}]
num_trials = 3
"""


def metrics(samples, val_error=0.09, *, done=False, failure=""):
    return {"num_samples_seen": samples, "val_error": val_error, "fidelity": 0.5, "done": done, "failure": failure}


def history_of(*trials):
    """Each trial is (lr, events)."""
    history = History()
    history.session(len(trials), time="now")
    for number, (lr, source, events) in enumerate(trials, 1):
        history.start({"lr": lr}, source=source, seed=0)
        for kind, *values in events:
            if kind == "report":
                history.report(number, values[0], stopped=False)
            elif kind == "stop":
                history.report(number, values[0], stopped=True)
            elif kind == "checkpoint":
                history.checkpoint(number, f"trial_{number:05d}/checkpoint_000000", values[0])
            else:
                history.error(number, values[0])
    return history


def test_the_status_of_a_trial_says_how_it_ended():
    history = history_of(
        (1.0, "seed point 1", [("report", metrics(100, done=True)), ("checkpoint", 100)]),
        (1.0, "optuna", [("stop", metrics(40)), ("checkpoint", 40)]),
        (2.0, "optuna", [("report", metrics(40, 0.9, done=True, failure="training loss is not finite"))]),
        (2.0, "optuna", [("report", metrics(40)), ("checkpoint", 40), ("error", "out of memory")]),
        (2.0, "optuna", [("report", metrics(40)), ("checkpoint", 40)]),
        (2.0, "optuna", [("stop", metrics(40))]),
        (2.0, "optuna", []),
    )
    trials = tabulate_trials({"lr": None, "batch_size": 32}, history.searched)
    assert trials["status"].tolist() == ["completed", "stopped", "failed", "failed", *["unfinished"] * 3]
    assert trials["seed_point"].isna().tolist() == [False, *[True] * 6]
    assert trials["val_error"].isna().tolist() == [False, False, True, True, False, False, True]
    assert trials["failure"].tolist()[2:4] == ["training loss is not finite", "out of memory"]
    assert trials["batch_size"].tolist() == [32] * 7
    assert trials["lr"].tolist() == [1.0, 1.0, *[2.0] * 5]
    assert trials["trial"].tolist() == list(range(1, 8))


def test_a_search_without_trials_has_an_empty_table():
    assert tabulate_trials({"lr": None}, []).empty


@pytest.fixture
def search(tmp_path):
    (tmp_path / "space.py").write_text(SPACE)
    options = SearchOptions(
        space=tmp_path / "space.py",
        experiment="x",
        results_dir=tmp_path / "results",
        max_samples=64,
        frechet=False,
    )
    return prepare_search(options)


def test_an_experiment_is_enough_to_run_it_again(search):
    with open_experiment(search, resume=False) as experiment:
        assert experiment.history.num_trials == 3
    described = json.loads((experiment.folder / "experiment.json").read_text())
    assert described["space"]["source"] == SPACE == (experiment.folder / "space.py").read_text()
    assert described["planned"] == [{"params": {"lr": 2.0}, "source": "seed point 1", "seed": 0, "samples": None}]
    assert described["trial"] == {
        "max_samples": 64,
        "report_samples": 3,
        "seed": 0,
        "validation_precision": "float32",
    }


def test_a_running_experiment_is_not_opened_twice(search):
    with (
        open_experiment(search, resume=False) as experiment,
        pytest.raises(
            MaskproError, match=r"x is running on host .*, as process \d+; allowed: one that has ended or was stopped"
        ),
        open_experiment(search, resume=True),
    ):
        pass
    assert experiment.history.num_sessions == 1
    with open_experiment(search, resume=True) as again:
        assert again.history.num_sessions == 2


def test_the_lock_of_a_killed_driver_holds_nobody_up(search):
    """The system gives it back with the process; only a lock that a process holds counts."""
    with open_experiment(search, resume=False) as experiment:
        pass
    with (experiment.folder / "running.lock").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        with pytest.raises(MaskproError, match="is running"), open_experiment(search, resume=True):
            pass
    with open_experiment(search, resume=True):
        pass


def test_an_extension_is_remembered(search):
    with open_experiment(search, resume=False):
        pass
    with open_experiment(search, resume=True, extend=4) as experiment:
        assert experiment.history.num_trials == 7
    with open_experiment(search, resume=True) as experiment:
        assert experiment.history.num_trials == 7


def test_a_mistake_before_the_first_trial_leaves_no_folder_and_a_later_one_leaves_everything(search):
    with pytest.raises(MaskproError, match="no Ray"), open_experiment(search, resume=False) as experiment:
        raise MaskproError("no Ray")
    assert not experiment.folder.exists()
    with suppress(MaskproError), open_experiment(search, resume=False) as experiment:
        experiment.history.start({"lr": 2.0}, source="seed point 1", seed=0)
        raise MaskproError("no masks")
    assert (experiment.folder / "history.jsonl").is_file()


def test_a_torn_last_line_is_dropped_before_anything_is_written(search):
    with open_experiment(search, resume=False) as experiment:
        experiment.history.start({"lr": 2.0}, source="seed point 1", seed=0)
    path = experiment.folder / "history.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"event": "rep')
    with open_experiment(search, resume=True) as again:
        assert list(again.history.trials) == [1]
    assert path.read_bytes().startswith(whole)
    assert History(path).num_sessions == 2


@pytest.mark.parametrize("storage", ["/proc/nowhere", "nonsense://bucket/path"])
def test_a_storage_that_cannot_be_written_is_named(search, storage):
    options = SimpleNamespace(**{name: getattr(search.options, name) for name in ("results_dir", "experiment")})
    options.storage_path = storage
    with pytest.raises(MaskproError, match=rf"storage_path is {storage}, which can't be written .*allowed: a writable"):
        check_writable(SimpleNamespace(options=options))


def test_what_comes_next_is_a_function_of_the_history(search):
    with open_experiment(search, resume=False) as experiment:
        state = experiment.search_state()
        assert not state.is_over
        first = state.next_trial()
        assert (first.params, first.source) == ({"lr": 2.0}, "seed point 1")
        second = state.next_trial()
        again = experiment.search_state()
        assert [again.next_trial().number for _ in range(2)] == [first.number, second.number]
        assert again.next_trial().number == 3
        assert again.next_trial() is None
        assert pd.isna(experiment.trials()["seed_point"].tolist()[1])


def test_what_tune_pickles_with_every_trial_holds_no_history():
    assert pickle.loads(pickle.dumps(trial_folder)) is trial_folder  # by its name: nothing else goes with it
    assert trial_folder(SimpleNamespace(config={"trial": 3, "folder": "trial_00003_part2"})) == "trial_00003_part2"


def test_every_tracker_that_is_named_gets_a_callback(tmp_path, monkeypatch):
    """Weights & Biases and MLflow by Ray's own callbacks; the tests do not install either."""
    monkeypatch.setattr("ray.air.integrations.wandb.wandb", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace())
    options = SimpleNamespace(swanlab=None, wandb="project", mlflow="sparse", experiment="first", folder=tmp_path)
    names = [type(tracker).__name__ for tracker in trackers(options)]
    assert names == ["WandbLoggerCallback", "MLflowLoggerCallback"]


def killed_early(search, files):
    """The folder of a search that was killed after it had written these files."""
    folder = search.options.folder
    folder.mkdir(parents=True)
    content = {
        "running.lock": json.dumps({"host": "here", "pid": 1}),
        "space.py": SPACE,
        ".space.py.abcd_123.py": "half",
        ".history.jsonl.abcd_123.jsonl": "",
        "history.jsonl": '{"event": "warm_start", "params": {"lr": 1.0}, "value": 1.0, "source": "x"}\n',
        ".experiment.json.abcd_123.json": "{",
    }
    for name in files:
        (folder / name).write_text(content[name])
    return folder


EARLY = (
    [],
    ["running.lock"],
    ["running.lock", ".space.py.abcd_123.py"],
    ["running.lock", "space.py", ".history.jsonl.abcd_123.jsonl"],
    ["running.lock", "space.py", "history.jsonl", ".experiment.json.abcd_123.json"],
)


@pytest.mark.parametrize("files", EARLY)
def test_a_search_that_was_killed_before_it_began_does_not_block_its_name(search, files):
    folder = killed_early(search, files)
    refuse_begun(folder)
    with pytest.raises(MaskproError, match="killed before anything was begun; allowed: to start it anew"):
        read_experiment(folder, "resume")
    with open_experiment(search, resume=False) as experiment:
        assert experiment.history.warm_start == []
    assert sorted(path.name for path in folder.iterdir()) == [
        "experiment.json",
        "history.jsonl",
        "running.lock",
        "space.py",
    ]


def test_what_is_not_such_a_folder_for_sure_is_kept(search):
    folder = killed_early(search, EARLY[-1])

    def is_kept():
        before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
        with pytest.raises(MaskproError, match="exists already and is not overwritten"):
            refuse_begun(folder)
        with pytest.raises(MaskproError, match="exists already"), open_experiment(search, resume=False):
            pass
        assert before == {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    for name in ("notes.txt", "experiment.json", ".hidden", ".space.py.swp"):
        (folder / name).write_text("{}")
        is_kept()
        (folder / name).unlink()
    (folder / ".best.abcd_123").mkdir()
    is_kept()
    (folder / ".best.abcd_123").rmdir()
    (folder / "running.lock").write_text("a user's own file")
    is_kept()
    (folder / "running.lock").unlink()
    is_kept()
    (folder / "running.lock").write_text("")
    with (folder / "history.jsonl").open("a") as file:
        file.write('{"event": "trial", "trial": 1, "params": {}, "source": "optuna", "seed": 0}\n')
    is_kept()


def test_a_search_that_is_about_to_begin_is_running(search):
    folder = killed_early(search, EARLY[1])
    with hold_lock(folder), pytest.raises(MaskproError, match="is running"):
        refuse_begun(folder)


def test_temporary_names_that_a_kill_has_left_go_when_the_experiment_is_opened(search):
    with open_experiment(search, resume=False) as experiment:
        pass
    folder = experiment.folder
    (folder / "evaluation").mkdir()
    (folder / ".best.x8k_2cdw" / "new").mkdir(parents=True)
    (folder / ".best.x8k_2cdw" / "new" / "masks.safetensors").write_text("half")
    for name in (".report.html.x8k_2cdw.html", ".history.jsonl.x8k_2cdw.jsonl", "evaluation/.selection.json.x8k_2cdw.json"):
        (folder / name).write_text("half")
    mine = [folder / name for name in (".gitignore", ".notes.txt.swp", ".notes.txt.x8k_2cdw", ".report.html.x8k_2cdw.png")]
    for path in mine:
        path.write_text("kept")
    with atomic_path(folder / "report.html") as temporary, open_experiment(search, resume=True):
        assert temporary.exists(), "somebody writes it"
    assert set(folder.rglob(".*")) == set(mine)


@pytest.mark.parametrize(
    "name", ["with blanks", "[brackets]", "50%", "50%20", "#1", "why?", "äöü", "a+b&c=d", "semi;colon"]
)
def test_any_name_of_a_folder_will_do(tmp_path, name):
    """A storage may be a URI, in which these characters have a meaning of their own."""
    (tmp_path / "space.py").write_text(SPACE)
    results, storage = tmp_path / name, tmp_path / f"{name} too"
    for options in ({}, {"storage_path": str(storage)}):
        options = SimpleNamespace(results_dir=results, experiment="x", **{"storage_path": None, **options})
        check_writable(SimpleNamespace(options=options))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([name, f"{name} too", "space.py"])
    assert list(results.iterdir()) == list(storage.iterdir()) == []
    (storage / "trial_00001").mkdir()
    (storage / "trial_00001" / "state.json").write_text("{}")
    with open_checkpoint(str(storage), "trial_00001").as_directory() as folder:
        assert (Path(folder) / "state.json").read_text() == "{}"


def test_a_full_disk_is_told_of_before_anything_runs(search, monkeypatch):
    def full(storage):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("maskpro.files.os.fsync", full)
    with (
        pytest.raises(MaskproError, match=r"x has no room left \(.*No space left on device"),
        open_experiment(search, resume=False),
    ):
        pass
    assert not search.options.folder.exists()


@pytest.mark.parametrize("field", ["results_dir", "storage_path"])
def test_a_disk_that_takes_empty_files_alone_is_full(search, tmp_path, field):
    places = {"results_dir": tmp_path / "results", "storage_path": str(tmp_path / "storage")}
    probe = Path(places[field]) / ".maskpro-x"
    probe.parent.mkdir()
    probe.symlink_to("/dev/full")
    with pytest.raises(MaskproError, match=rf"^{field} is .*, which can't be written \(.*No space left on device"):
        check_writable(SimpleNamespace(options=SimpleNamespace(experiment="x", **places)))
    assert not probe.is_symlink()
