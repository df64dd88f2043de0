"""One trial in its actor, without Ray around it."""

import faulthandler
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import ray
import torch
from ray.exceptions import RayError
from shared_fixtures import CPU, with_few_held_out

from maskpro.errors import MaskproError
from maskpro.estimators import Tracker
from maskpro.files import write_json
from maskpro.initial_masks import INITIAL_MASK_METHODS
from maskpro.masked_model import model_hash
from maskpro.objectives.diffusion import DiffusionObjective
from maskpro.runs import MaskFormat
from maskpro.schedule.checkpoints import COUNTERS_FILE, read_counters
from maskpro.schedule.history import PARTS
from maskpro.tuning import shared as shared_module
from maskpro.tuning.shared import (
    RayShelf,
    SharedValues,
    TrialContext,
    _judged,
    initial_masked,
    prepare_process,
)
from maskpro.tuning.trainable import FAILURE_PENALTY, MaskTrainable

FORMATS = (MaskFormat("2:4", "channel"), MaskFormat("1:4", "flattened"), MaskFormat("2:4", "channel", "wanda"))
OWN = {"trial": 1, "seed": 0, "checkpoint": "", "promoted": False, "folder": "trial_00001", "budget": None}
FIRST = {**OWN, "lr": 2.0, "batch_size": 16, "dataset_size": 64}
SECOND = {**OWN, "lr": 1.0, "batch_size": 24, "dataset_size": 80, "estimator": "policy_gradient", "target": "teacher"}
THIRD = {**FIRST, "pattern": "1:4", "layout": "flattened", "targets": "up_blocks mid_block", "target": "noise"}
NOISE = {**SECOND, "target": "noise"}
UNIFORM_TEACHER = ("teacher", "uniform", "float32")
OTHER_SEED = {**FIRST, "seed": 1}
WANDA = {**SECOND, "initial_mask": "wanda"}
REFRESHED = {**SECOND, "refresh_reference": True, "logits": 1.0}
IMPORTANCE = {**SECOND, "timesteps": "importance"}
ROUNDED = {**IMPORTANCE, "precision": "bfloat16"}


@pytest.fixture(scope="module", autouse=True)
def _no_ray():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ray.get_gpu_ids", list)
        patch.setattr("torch.set_num_threads", lambda count: None)
        yield


@pytest.fixture(scope="module")
def digits(digits):
    return with_few_held_out(digits)


@pytest.fixture(scope="module")
def context(digits, tmp_path_factory):
    return TrialContext(
        workload=digits,
        pattern="2:4",
        layout="channel",
        initial_mask="magnitude",
        targets=("all",),
        max_samples=96,
        report_samples=40,
        seed=0,
        formats=FORMATS,
        table_samples=80,
        timesteps=("uniform", "importance"),
        precisions=("float32", "bfloat16"),
        storage=str(tmp_path_factory.mktemp("storage")),
    )


@pytest.fixture(scope="module")
def shared(context):
    dense, initial, shares = _judged(context)
    return SharedValues(dense_val_loss=dense, initial=initial, timestep_shares=shares)


class Keeper(dict):
    """As an actor of TableKeeper, without one."""

    def __init__(self):
        self.get = SimpleNamespace(remote=lambda key: [self[key]] if key in self else [])
        self.put = SimpleNamespace(remote=lambda key, values: self.setdefault(key, np.array(values)))


@pytest.fixture
def start(context, shared):
    class Started(MaskTrainable):
        """As tune.with_parameters would make it, without an object store."""

        def setup(self, config):
            super().setup(config, context=context, shared=shared)

    return Started


REPORTED = ("num_samples_seen", "fidelity", "val_error", "val_error_now", "val_loss", "train_loss", "done")


def reported(row):
    """A report, less clocks and names."""
    return {name: row[name] for name in REPORTED}


def results(trial):
    """What a trial reports, less clocks and names."""
    rows = []
    while not rows or not rows[-1]["done"]:
        rows.append(reported(trial.train()))
    return rows


@pytest.mark.slow
def test_a_trial_reports_at_fixed_numbers_of_samples_and_ends_at_its_budget(start):
    rows = results(start(dict(SECOND)))
    assert [row["num_samples_seen"] for row in rows] == [40, 80, 96]
    assert [row["done"] for row in rows] == [False, False, True]
    lowest = [min(row["val_error_now"] for row in rows[: count + 1]) for count in range(3)]
    assert [row["val_error"] for row in rows] == lowest


@pytest.mark.slow
def test_a_run_up_to_a_rung_is_a_run_of_its_own_length_and_a_promoted_one_begins_anew(start, context):
    rung, settings = 80, {**FIRST, "lr": 30.0, "lr_decay": "cosine"}
    first = start({**settings, "budget": rung})
    rows = [first.train() for _ in range(2)]
    assert [(row["num_samples_seen"], row["done"]) for row in rows] == [(40, False), (rung, False)]
    assert first._running_trainer().finished
    whole = start(dict(settings))
    assert rows[1]["val_error_now"] != [whole.train() for _ in range(2)][1]["val_error_now"]

    folder = Path(context.storage) / "rung"
    folder.mkdir()
    first.save_checkpoint(str(folder))
    promoted = {"checkpoint": "rung", "promoted": True, "budget": context.max_samples}
    again = start({**settings, **promoted})
    assert again._seconds == first._seconds > 0
    row = again.train()
    assert (row["num_samples_seen"], row["num_samples_trained"]) == (40, rung + 40)
    again = start({**settings, **promoted})
    assert results(again) == results(start(dict(settings)))

    counters = read_counters(folder)
    del counters["earlier_samples"]  # an older checkpoint
    write_json(folder / COUNTERS_FILE, counters)
    assert start({**settings, **promoted})._earlier_samples == rung


@pytest.fixture
def scaled_start(start, context, shared):
    class Scaled(start):
        def setup(self, config):
            MaskTrainable.setup(self, config, context=replace(context, rung_lr_exponent=0.5), shared=shared)

    return Scaled


def test_a_run_up_to_a_rung_learns_at_the_scaled_rate_and_the_full_run_at_the_trials_own(start, scaled_start, context):
    rung = context.report_samples
    ratio = context.max_samples / rung
    unscaled = start({**FIRST, "lr": FIRST["lr"] * ratio**0.5, "budget": rung})
    scaled = scaled_start({**FIRST, "budget": rung})
    assert reported(scaled.step()) == reported(unscaled.step())
    assert scaled._running_trainer().config.lr == pytest.approx(2.0 * ratio**0.5)
    for budget in (None, context.max_samples):
        config = scaled_start({**FIRST, "budget": budget})._running_trainer().config
        assert config == start(dict(FIRST))._running_trainer().config


@pytest.mark.slow
def test_a_run_up_to_a_rung_resumes_bit_for_bit(start, context):
    settings = {**FIRST, "budget": 80, "lr_decay": "cosine"}
    whole = start(dict(settings))
    whole.train()
    expected = reported(whole.train())
    cut = start(dict(settings))
    cut.train()
    folder = Path(context.storage) / "cut"
    folder.mkdir()
    cut.save_checkpoint(str(folder))
    resumed = start({**settings, "checkpoint": "cut"})
    assert reported(resumed.train()) == expected


@pytest.mark.slow
def test_trials_on_a_reused_actor_equal_trials_on_fresh_ones(start):
    """Also around one with another seed, whose calibration samples are others."""
    configs = (FIRST, SECOND, THIRD, OTHER_SEED, FIRST, NOISE, IMPORTANCE, ROUNDED)
    reused = start(dict(configs[0]))
    found = [results(reused)]
    for config in configs[1:]:
        assert reused.reset(dict(config))
        found.append(results(reused))
    assert found == [results(start(dict(config))) for config in configs]
    assert found[0] == found[4] != found[3]
    assert found[6] != found[7]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "parts"),
    [
        (FIRST, {(UNIFORM_TEACHER, 0)}),
        (
            SECOND,
            {
                (name, part)
                for name in (UNIFORM_TEACHER, (FORMATS[0], "teacher", "uniform", "float32"))
                for part in range(2)
            },
        ),
        (NOISE, {((FORMATS[0], "noise", "uniform", "float32"), part) for part in range(2)}),
        (
            ROUNDED,
            {((*name, "teacher", "importance", "bfloat16"), part) for name in ((), (FORMATS[0],)) for part in range(2)},
        ),
    ],
)
def test_shared_tables_change_nothing(context, shared, config, parts, monkeypatch):
    """The first trial makes the parts and leaves them, the second takes them, the third does without."""
    monkeypatch.setattr("ray.get", lambda part: part)
    monkeypatch.setattr("maskpro.objectives.PART", 64)
    keeper = Keeper()

    def started(keeper):
        class Started(MaskTrainable):
            def setup(self, config):
                super().setup(config, context=context, shared=replace(shared, keeper=keeper))

        return Started(dict(config))

    first = results(started(keeper))
    assert keeper.keys() == parts
    made = dict(keeper)
    assert results(started(keeper)) == first == results(started(None))
    assert all(keeper[key] is made[key] for key in keeper)


def test_timesteps_are_drawn_as_a_trials_config_says(start, shared):
    """And with the search's own shares, whatever network a process has."""
    uniform, importance = (start(dict(config))._running_trainer()._gradient.objective for config in (SECOND, IMPORTANCE))
    indices, shares = torch.arange(512), shared.timestep_shares["float32"]
    early = [
        (objective.batch(indices).timesteps < 1000 / len(shares)).float().mean() for objective in (uniform, importance)
    ]
    assert early[0] == pytest.approx(1 / len(shares), abs=0.03)
    assert early[1] == pytest.approx(shares[0], abs=0.07)
    assert shares[0] > 0.2
    assert shared.timestep_shares["bfloat16"] != shares


@pytest.mark.parametrize(
    ("precisions", "expected"),
    [(("float32",), "float32"), (("bfloat16",), "bfloat16"), (("float32", "bfloat16"), "float32")],
)
def test_all_trials_of_a_search_are_validated_in_one_precision(context, digits, precisions, expected):
    """And the shared figures of the initial mask are those that a trial would find."""
    small = replace(digits, budgets=replace(digits.budgets, validation_samples=64))
    context = replace(context, workload=small, precisions=precisions, formats=FORMATS[:1], timesteps=("uniform",))
    dense, initial, shares = _judged(context)
    assert shares == {}

    class Started(MaskTrainable):
        def setup(self, config):
            super().setup(config, context=context, shared=SharedValues(dense_val_loss=dense, initial=initial))

    held_out = small.held_out_samples("validation", CPU, expected)
    assert held_out.judge(digits.model).means().loss == dense
    for precision in precisions:
        trainer = Started({**FIRST, "precision": precision})._trainer
        assert trainer.validate() == trainer.initial == held_out.judge(trainer.masked.model).means()


def test_a_part_whose_process_is_lost_is_made_again(monkeypatch):
    def lost(part):
        raise ray.exceptions.OwnerDiedError("0" * 56, "", "")

    keeper = Keeper()
    keeper["x", 3] = np.zeros(2)
    monkeypatch.setattr("ray.get", lost)
    assert RayShelf(keeper, "x").get(3) is None


@pytest.mark.parametrize(("share", "fits"), [(1, False), (4, True)])
def test_a_table_that_would_fill_the_object_store_is_not_shared(context, monkeypatch, share, fits):
    table = 2 * 2 * 80 * 64 * 4  # one for each way in which trials may draw timesteps, and for each precision
    nodes = [{"Alive": True, "Resources": {"object_store_memory": size}} for size in (share * table, 100 * table)]
    monkeypatch.setattr("ray.nodes", lambda: [*nodes, {"Alive": False, "Resources": {}}])
    assert shared_module._fits(context) == fits


@pytest.fixture
def stored(start, context, shared, tmp_path):
    """(trials whose storage is a folder here, path of the checkpoint of a trial after its first report)."""

    def store(config, as_uri=False):
        first = start(dict(config))
        first.train()
        folder = tmp_path / "trial_00001" / "checkpoint_000000"
        folder.mkdir(parents=True)
        first.save_checkpoint(str(folder))
        storage = tmp_path.as_uri() if as_uri else str(tmp_path)

        class Started(MaskTrainable):
            def setup(self, config):
                super().setup(config, context=replace(context, storage=storage), shared=shared)

        return Started, folder

    return store


@pytest.mark.slow
@pytest.mark.parametrize("as_uri", [False, True])
@pytest.mark.parametrize("config", [FIRST, SECOND])
def test_a_trial_that_goes_on_does_so_bit_for_bit(start, stored, config, as_uri):
    started, _ = stored(config, as_uri)
    whole = results(start(dict(config)))
    assert results(started({**config, "checkpoint": "trial_00001/checkpoint_000000"})) == whole[1:]


@pytest.mark.slow
@pytest.mark.parametrize("config", [FIRST, SECOND])
def test_a_promoted_trial_goes_on_the_same_whether_the_exact_part_has_been_removed_or_not(stored, config):
    started, folder = stored(config)
    promoted = {**config, "checkpoint": "trial_00001/checkpoint_000000", "promoted": True}
    before = results(started(dict(promoted)))
    (folder / "exact.safetensors").unlink()
    assert results(started(dict(promoted))) == before
    assert [row["num_samples_seen"] for row in before] == [80, 96]
    with pytest.raises(
        MaskproError, match=r"has no exact\.safetensors; allowed: one whose part exact has not been removed"
    ):
        started({**promoted, "promoted": False})


@pytest.mark.parametrize(
    ("config", "exact"), [(FIRST, 5.0), (SECOND, 5.0), ({**FIRST, "optimizer": "sgd"}, 5.0), (REFRESHED, 5.125)]
)
def test_a_checkpoint_has_so_many_bytes_a_weight(stored, config, exact, monkeypatch):
    """Besides 20 KB: of the files' headers, the generator and the losses on held-out samples."""
    monkeypatch.setattr(Tracker, "reference_is_far", lambda self: self.updates == 1)
    started, folder = stored(config)
    weights = started(dict(config))._trainer.logits.numel()
    sizes = {name: (folder / f"{name}.safetensors").stat().st_size / weights for name in PARTS}
    fixed = 20_000 / weights
    assert 0.125 <= sizes["mask"] < 0.125 + fixed
    assert sizes["mask"] + sizes["logits"] < exact - 4 + fixed
    assert exact < sum(sizes.values()) < exact + fixed
    assert {path.name for path in folder.iterdir()} == {*(f"{name}.safetensors" for name in PARTS), "state.json"}
    assert (folder / "state.json").stat().st_size < 1_000


def test_a_trial_that_goes_on_from_its_end_reports_it_once_more(start, context, tmp_path):
    first = start(dict(FIRST))
    rows = results(first)
    first.save_checkpoint(str(tmp_path))
    second = start(dict(FIRST))
    second.load_checkpoint(str(tmp_path))
    (again,) = results(second)
    for name in ("num_samples_seen", "val_error", "val_error_now", "val_loss", "done"):
        assert again[name] == rows[-1][name]


def test_a_failure_in_a_rungs_run_names_the_trials_own_learning_rate_too(scaled_start, monkeypatch):
    trial = scaled_start({**FIRST, "budget": 24})
    original = DiffusionObjective.teacher_losses
    monkeypatch.setattr(DiffusionObjective, "teacher_losses", lambda *inputs: original(*inputs) * math.nan)
    failure = trial.train()["failure"]
    assert failure.endswith("a lower lr than 4 (this run's, scaled by rung_lr_exponent from the trial's lr 2)")


def test_a_loss_that_is_not_finite_ends_the_trial_with_a_finite_penalty(start, monkeypatch):
    trial = start(dict(FIRST))
    original = DiffusionObjective.teacher_losses
    monkeypatch.setattr(DiffusionObjective, "teacher_losses", lambda *inputs: original(*inputs) * math.nan)
    result = trial.train()
    assert result["done"]
    expected = "training loss is not finite after 40 samples; allowed: a lower lr than "
    assert result["failure"].startswith(expected)
    assert "bfloat16" not in result["failure"], "the trial was in float32"
    assert result["val_error"] == FAILURE_PENALTY * trial._initial.error


def test_a_trial_that_finds_no_memory_for_one_sample_fails_and_the_next_one_runs(start, monkeypatch):
    trial = start(dict(FIRST))
    with monkeypatch.context() as patch:

        def predict(*inputs):
            raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")

        patch.setattr(DiffusionObjective, "predict", predict)
        result = trial.train()
    needed = "out of memory with one sample at a time; allowed: more of the GPU (--gpus-per-trial): "
    assert (result["done"], result["failure"]) == (True, f"{needed}CUDA out of memory. Tried to allocate 2 GiB")
    assert result["val_error"] == FAILURE_PENALTY * trial._initial.error
    assert trial.reset(dict(SECOND))
    assert results(trial) == results(start(dict(SECOND)))


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RayError("lost"), RuntimeError("CUDA error: launch")])
def test_an_exception_of_the_machine_is_left_to_ray_and_one_of_a_trials_own_fails_it_at_once(start, monkeypatch, error):
    def raises(what):
        def predict(*inputs):
            raise what

        return predict

    trial = start(dict(FIRST))
    with monkeypatch.context() as patch:
        patch.setattr(DiffusionObjective, "predict", raises(error))
        with pytest.raises(type(error)):
            trial.step()
        patch.setattr(DiffusionObjective, "predict", raises(IndexError("no such\nlayer")))
        result = trial.train()
    assert (result["done"], result["failure"]) == (True, "IndexError: no such layer")
    assert trial.reset(dict(SECOND))
    assert results(trial) == results(start(dict(SECOND)))


def test_a_trial_that_can_not_be_built_fails_and_the_next_one_runs(start, tmp_path):
    trial = start({**FIRST, "lr": -1.0})
    result = trial.train()
    assert result["done"]
    assert result["failure"].startswith("MaskproError: lr is -1.0; allowed: ")
    trial.save_checkpoint(str(tmp_path))
    assert trial.reset(dict(SECOND))
    assert results(trial) == results(start(dict(SECOND)))


def test_a_step_ends_its_process_after_the_timeout_and_not_after_its_own_end(start, context, shared, monkeypatch):
    told = []
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *given, **named: told.append((*given, named["exit"])))
    monkeypatch.setattr(faulthandler, "cancel_dump_traceback_later", lambda: told.append("over"))
    trial = start(dict(FIRST))
    trial.train()
    assert told == []
    trial._context = replace(context, trial_timeout=600.0)
    trial.train()
    assert told == [(600.0, True), "over"]


def test_a_trial_that_makes_things_worse_is_told_from_one_that_does_nothing(start):
    """A random walk: raw steps far too large. Its metric is its own, while the mask it would promote is the initial one."""
    raw = {"estimator": "policy_gradient", "target": "noise", "raw_step": True, "lr": 1e5}
    trial = start({**OWN, **raw, "batch_size": 8, "dataset_size": 64})
    worst = results(trial)[-1]
    assert worst["val_error"] > trial._initial.error
    assert worst["fidelity"] < 0
    assert trial._trainer.best == trial._initial


def test_a_trial_without_an_assigned_gpu_stays_on_the_cpu(start, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert start(dict(FIRST))._trainer.logits.device == CPU


@pytest.mark.parametrize(("cpus", "threads"), [(0.5, 1), (1.0, 1), (2.9, 2), (8.0, 8)])
def test_a_process_has_as_many_threads_as_its_trial_has_cores(context, monkeypatch, cpus, threads):
    counts = []
    monkeypatch.setattr("torch.set_num_threads", counts.append)
    assert prepare_process(replace(context, cpus=cpus)) == CPU
    assert counts == [threads]


@pytest.mark.parametrize(("share", "fractions"), [(0.25, [0.25]), (1.0, [])])
def test_trials_that_share_a_gpu_share_its_memory(context, monkeypatch, share, fractions):
    """No GPU is needed to see what is asked for."""
    found = []
    monkeypatch.setattr("ray.get_gpu_ids", lambda: [0])
    monkeypatch.setattr("torch.cuda.set_per_process_memory_fraction", found.append)
    assert prepare_process(replace(context, gpu_share=share)) == torch.device("cuda")
    assert found == fractions


@pytest.mark.slow
@pytest.mark.parametrize("method", INITIAL_MASK_METHODS)
def test_the_initial_mask_is_the_same_whatever_is_learned(context, digits, method):
    form = MaskFormat("2:4", "channel", method)
    whole = initial_masked(context, digits.model, form)
    part = initial_masked(context, digits.model, form, ("up_blocks",))
    assert model_hash(whole.model) == model_hash(part.model) != model_hash(digits.model)
    assert part.num_learned < whole.num_learned


@pytest.mark.slow
def test_a_trial_starts_at_its_own_initial_mask(start, context, digits):
    trial = start(WANDA)
    expected = initial_masked(context, digits.model, FORMATS[2])
    assert torch.equal(trial._running_trainer().initial_mask, expected.mask)
    (row, *_) = (trial.train(),)
    found = trial._cache.validation["float32"].judge(expected.model).means()
    assert (row["initial_val_loss"], row["initial_val_error"]) == pytest.approx(found)
    assert row["initial_val_error"] != trial._shared.initial[FORMATS[0]].error
    assert row["fidelity"] == pytest.approx(1 - row["val_error"] / found.error)
