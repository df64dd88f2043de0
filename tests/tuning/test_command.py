"""What the command line is refused for, before anything is started: one sentence with field, value and what is allowed."""

import datetime
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from maskpro.errors import MaskproError
from maskpro.files import write_json
from maskpro.machine.interruption import parse_duration
from maskpro.schedule.history import History
from maskpro.schedule.rungs import Ladder
from maskpro.search_options import JobOptions, SearchOptions
from maskpro.tuning.command import parse_command
from maskpro.tuning.experiment import Experiment
from maskpro.tuning.search import EXPERIMENT_FORMAT, prepare_search

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)
SPACE = """
from ray import tune
param_space = {"lr": tune.loguniform(0.5, 2.0), "batch_size": tune.choice([16, 32])}
seed_points = [{"lr": 1.0, "batch_size": 16}, {"lr": 1.5, "batch_size": 32}, {"lr": 0.5, "batch_size": 32}]
num_trials = 5
"""


@pytest.fixture
def parse(tmp_path):
    """Parse options given beside a good space; with `resume` and `replay` the folder there is no experiment."""
    (tmp_path / "small.py").write_text(SPACE)

    def parse(*, resume=None, extend=None, replay=None, config=None, **given):
        if resume is None and replay is None:
            given = {"space": tmp_path / "small.py", "results_dir": tmp_path, "frechet": False, **given}
        job = JobOptions(resume=resume, extend=extend, replay=replay, config=config)
        return parse_command(given, job, now=NOW)

    return parse


def test_a_new_search_is_named_after_its_space_and_the_time(parse, tmp_path):
    search = parse()
    assert search.options.folder == tmp_path / "small-20260102-030405"
    assert [plan.source for plan in search.planned] == ["seed point 1", "seed point 2", "seed point 3"]
    assert (search.num_trials, search.searcher, search.scheduler) == (5, "optuna", "asha")


def test_options_come_before_what_the_space_says(parse):
    search = parse(seed_points="3, 1", num_trials=2, searcher="random", scheduler="median", seed=7, experiment="mine")
    assert [(plan.source, plan.seed) for plan in search.planned] == [("seed point 3", 7), ("seed point 1", 7)]
    assert (search.num_trials, search.searcher, search.scheduler) == (2, "random", "median")
    assert search.options.folder.name == "mine"


def begun(search, trials=()):
    """The folder of an experiment with these (params, report) of stopped trials."""
    folder = search.options.folder
    folder.mkdir()
    write_json(folder / "experiment.json", search.describe())
    (folder / "space.py").write_text(search.space.source)
    history = History(folder / "history.jsonl")
    history.session(search.num_trials, time="now")
    for params, samples in trials:
        number = history.start(params, source="optuna", seed=0).number
        history.report(number, {"num_samples_seen": samples, "val_error": 0.5, "done": False}, stopped=True)
        history.checkpoint(number, "somewhere", samples)
    return folder


@pytest.mark.slow
def test_only_the_rungs_of_asha_are_runs_of_their_own_also_when_it_is_done_again(parse, tmp_path):
    """Trials that the median stopped were in the middle of their schedules."""
    (tmp_path / "restart.py").write_text(SPACE + "promotion = 'restart'")
    for scheduler, restarts in (("asha", True), ("median", False), ("none", False)):
        search = parse(space=tmp_path / "restart.py", scheduler=scheduler, experiment=scheduler)
        folder = begun(search, [({"lr": 1.0, "batch_size": 16}, 934)])
        again = parse_command({"results_dir": tmp_path}, JobOptions(replay=folder), now=NOW)
        assert (again.is_replay, again.scheduler, [plan.samples for plan in again.planned]) == (True, "none", [934])
        assert search.restarts == again.restarts == restarts
        found = Ladder.of_record(search.describe())
        assert (found and (len(found.ends), found.restarts)) == {"asha": (4, True), "median": None, "none": (1, False)}[
            scheduler
        ]
    assert not parse(space=tmp_path / "restart.py", only_seed_points=True).restarts
    with pytest.raises(
        MaskproError, match=r"warm_start is .*median, a search with another promotion \(resume\); allowed: r"
    ):
        parse(space=tmp_path / "restart.py", warm_start=tmp_path / "median")
    assert len(parse(space=tmp_path / "restart.py", warm_start=tmp_path / "asha").warm_start) == 1
    for other in ("num_reports = 9", "reduction_factor = 4", "rung_lr_exponent = 0.3"):
        (tmp_path / "other.py").write_text(f"{SPACE}promotion = 'restart'\n{other}\n")
        with pytest.raises(
            MaskproError, match=r"warm_start is .*asha, a search with another promotion \(restart, rung_lr_"
        ):
            parse(space=tmp_path / "other.py", warm_start=tmp_path / "asha")
    assert len(parse(warm_start=tmp_path / "none").warm_start) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("record", "name", "value", "message"),
    [
        ("trial", "max_samples", 25_000, r"max_samples of the experiment is 25200, but was 25000 when it began; allowed: "),
        ("trial", "report_samples", 900, r"report_samples of the experiment is 934, but was 900 when it began; allowed: "),
        ("workload", "images", {"read": {"train": 7}}, r"images of the experiment is .*1197.*, but was {'train': 7} when"),
    ],
)
def test_an_experiment_whose_trials_would_no_longer_be_comparable_is_refused(parse, tmp_path, record, name, value, message):
    folder = begun(parse(experiment="first"))
    described = json.loads((folder / "experiment.json").read_text())
    described[record][name] = value
    write_json(folder / "experiment.json", described)
    for job in (JobOptions(resume=folder), JobOptions(replay=folder)):
        with pytest.raises(MaskproError, match=message):
            parse_command({"results_dir": tmp_path} if job.replay else {}, job, now=NOW)


@pytest.mark.slow
def test_a_search_without_a_trial_yet_is_done_again_by_its_seed_and_from_the_same_warm_start(parse, tmp_path):
    first = begun(parse(experiment="first"), [({"lr": 1.0, "batch_size": 16}, 934)])
    second = begun(parse(experiment="second", warm_start=first))
    again = parse_command({"results_dir": tmp_path}, JobOptions(replay=second), now=NOW)
    assert (again.is_replay, again.num_trials, len(again.planned), len(again.warm_start)) == (False, 5, 3, 1)


@pytest.mark.parametrize("given", [{"config": 2}, {"seed_points": "2", "only_seed_points": True}])
def test_a_chosen_seed_point_alone_is_run_to_its_full_budget(parse, given):
    search = parse(**given)
    assert [dict(plan.params) for plan in search.planned] == [{"lr": 1.5, "batch_size": 32}]
    assert (search.num_trials, search.scheduler) == (1, "none")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"extend": 3}, "extend is 3; allowed: a whole number of at least 1, together with --resume"),
        ({"extend": 0, "resume": "folder"}, "extend is 0; allowed: a whole number of at least 1, together with --resume"),
        ({"extend": 3, "replay": "folder"}, "extend is 3; allowed: .*, together with --resume"),
        ({"resume": "folder", "replay": "folder"}, "replay is folder together with resume; allowed: one of them"),
        (
            {"resume": "folder", "seed": 3},
            "seed is 3 together with resume; allowed with resume: address, .*extend, .*time_budget",
        ),
        ({"resume": "folder", "space": "a.py"}, "space is a.py together with resume; allowed with resume: address"),
        ({"resume": "folder", "seed": 3}, "seed is 3 together with resume; allowed with resume: address"),
        ({"replay": "folder", "num_trials": 9}, "num_trials is 9 together with replay; allowed with replay: .*experiment"),
        ({"replay": "folder", "config": 1}, "config is 1 together with replay; allowed with replay: address"),
        ({"config": 1, "num_trials": 3}, "num_trials is 3 together with config; allowed: config alone"),
        ({"config": 1, "seed_points": "1"}, "seed_points is 1 together with config; allowed: config alone"),
        ({"config": 1, "only_seed_points": True}, "only_seed_points is True together with config; allowed: config alone"),
        ({"config": 4}, "seed_points holds 4; allowed: each of the numbers 1 to 3 once"),
        ({"config": 0}, "config is 0; allowed: the number of a seed point"),
        ({"seed_points": "4"}, "seed_points holds 4; allowed: each of the numbers 1 to 3 once"),
        ({"seed_points": "0,1"}, "seed_points holds 0; allowed: each of the numbers 1 to 3 once"),
        ({"seed_points": "1,2,1"}, "seed_points holds 1; allowed: each of the numbers 1 to 3 once"),
        ({"num_trials": 2}, r"num_trials is 2; allowed: at least the 3 seed points \(choose some with --seed-points\)"),
        ({"num_trials": 0}, "num_trials is 0; allowed: a whole number of at least 1"),
        ({"max_samples": 0}, "max_samples is 0; allowed: a whole number of at least 1"),
        ({"max_concurrent": 0}, "max_concurrent is 0; allowed: a whole number of at least 1"),
        ({"selection_samples": 0}, "selection_samples is 0; allowed: a whole number of at least 1"),
        ({"test_samples": 1}, "test_samples is 1; allowed: a whole number of at least 2"),
        ({"num_generated": 1}, "num_generated is 1; allowed: a whole number of at least 2"),
        ({"sampling_steps": 0}, "sampling_steps is 0; allowed: a whole number of at least 1"),
        ({"promote_top_k": 0}, "promote_top_k is 0; allowed: a whole number of at least 1"),
        ({"confirm_seeds": -1}, "confirm_seeds is -1; allowed: a whole number of at least 0"),
        ({"seed": -1}, "seed is -1; allowed: 0 to 4294967295"),
        ({"seed": 2**32}, "seed is 4294967296; allowed: 0 to 4294967295"),
        ({"gpus_per_trial": 2.0}, "gpus_per_trial is 2.0; allowed: 0, a fraction such as 0.25, or 1"),
        ({"gpus_per_trial": -0.5}, "gpus_per_trial is -0.5; allowed: 0, a fraction"),
        ({"gpus_per_trial": float("nan")}, "gpus_per_trial is nan; allowed: 0, a fraction"),
        ({"cpus_per_trial": 0.0}, "cpus_per_trial is 0.0; allowed: a number above 0"),
        ({"cpus_per_trial": float("inf")}, "cpus_per_trial is inf; allowed: a number above 0"),
        ({"searcher": "hyperopt"}, "searcher is 'hyperopt'; allowed: optuna, tpe, gp, qmc, random"),
        ({"scheduler": "hyperband"}, "scheduler is 'hyperband'; allowed: asha, median, none"),
        ({"sampling_precision": "half"}, "sampling_precision is 'half'; allowed: auto, float32, bfloat16"),
        ({"features": "none.pt", "frechet": True}, r"features is 'none.pt' \(no such file\); allowed: digits-classifier, "),
        ({"features": __file__, "frechet": True}, "neither a TorchScript nor a torch.export file; allowed"),
        ({"reference_statistics": Path(__file__), "frechet": True}, "can't be read as a .npz file of numbers"),
        ({"sampler": "euler"}, "sampler is 'euler'; allowed: ddim, ddpm"),
        ({"timestep_spacing": "karras"}, "timestep_spacing is 'karras'; allowed: leading, trailing, linspace, quad"),
        (
            {"sampling_steps": 600, "timestep_spacing": "leading"},
            "leading, which would begin at timestep 599 of 1000; allowed",
        ),
        ({"resize": "cubic"}, "resize is 'cubic'; allowed: bilinear, bicubic"),
        ({"crop": "face"}, "crop is 'face'; allowed: centre, none, celeba"),
        ({"background": "nocolour"}, "background is 'nocolour'; allowed: white, black"),
        ({"crop": "celeba"}, "crop celeba, .* with scikit-learn digits, which is read as it is; allowed: with a folder"),
        (
            {"resume": "folder", "crop": "none"},
            "crop is none together with resume; allowed with resume: .*timestep_spacing",
        ),
        ({"experiment": "a/b"}, "experiment is 'a/b'; allowed: a plain folder name"),
        ({"experiment": ".."}, r"experiment is '\.\.'; allowed: a plain folder name"),
        ({"space": None}, "space is missing; allowed: a search-space file"),
        ({"workload": "mnist"}, "workload is 'mnist'; allowed: digits, cifar10"),
    ],
)
def test_options_that_are_out_of_range_or_do_not_go_together_are_refused(parse, given, message):
    with pytest.raises(MaskproError, match=message) as caught:
        parse(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", " ", ",", "1,", "1;2", "1-2", "-1", "one", "1.0"])
def test_seed_points_that_are_no_numbers_are_refused(parse, text):
    with pytest.raises(
        MaskproError, match=r"^seed_points is '.*'; allowed: numbers with commas between them, such as 1,3$"
    ):
        parse(seed_points=text)


@pytest.mark.parametrize("option", ["resume", "replay"])
def test_a_folder_without_an_experiment_is_refused(parse, tmp_path, option):
    with pytest.raises(
        MaskproError, match=rf"^{option} is .*; no experiment there \(allowed: a folder with experiment.json\)$"
    ):
        parse(**{option: tmp_path})


@pytest.mark.parametrize("option", ["resume", "replay"])
def test_an_experiment_of_another_format_is_refused(parse, tmp_path, option):
    (tmp_path / "experiment.json").write_text('{"format": 1}')
    with pytest.raises(MaskproError, match=r"experiment.json is of another version; allowed: format \d+ \(.* --space "):
        parse(**{option: tmp_path})


NO_DURATIONS = [
    "2",
    " 2 ",
    "1.5",
    "soon",
    "-1h",
    "0s",
    "0",
    "",
    " ",
    "nan",
    "inf",
    "2h30",
    "1y",
    "1h-2h",
    "99999999h",
    "1:30:00",
    "2,5h",
    "+5s",
]


@pytest.mark.parametrize("text", NO_DURATIONS)
def test_a_time_budget_that_is_no_duration_with_its_unit_is_refused(parse, text):
    with pytest.raises(MaskproError) as caught:
        parse(time_budget=text)
    assert str(caught.value) == (f"time_budget is {text!r}; allowed: a duration with its unit, such as 2h, 90min or 1h30m")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200),
        ("2 h", 7200),
        ("90min", 5400),
        ("90m", 5400),
        ("1h30m", 5400),
        ("1.5h", 5400),
        ("45s", 45),
        ("0.5s", 0.5),
        ("1d", 86400),
        ("1d 2h", 93600),
    ],
)
def test_durations_are_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize(("masks", "allowed"), [(4, True), (7, False)])
def test_several_masks_a_step_must_fit_the_reports(tmp_path, masks, allowed):
    path = tmp_path / "space.py"
    path.write_text(
        "from ray import tune\nmax_samples = 480\nnum_reports = 6\nseed_points = []\n"
        f"param_space = {{'lr': tune.uniform(1.0, 2.0), 'estimator': 'policy_gradient', 'masks_per_step': {masks}}}\n"
    )
    options = SearchOptions(space=path, experiment="x", results_dir=tmp_path, frechet=False)
    if allowed:
        assert prepare_search(options).context.report_samples == 80
        return
    with pytest.raises(MaskproError, match=r"masks_per_step is 7; allowed: a divisor of max_samples, 480, .* 80"):
        prepare_search(options)


@pytest.mark.slow
def test_what_judges_images_is_opened_before_the_search_and_kept_to_resume_it(parse, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    statistics = {"mu": np.zeros(64), "sigma": np.eye(64)}
    np.savez("digits.npz", **statistics)
    given = {"features": "digits-classifier", "reference_statistics": Path("digits.npz"), "compile_sampling": False}
    described = json.loads(json.dumps(parse(frechet=True, **given).describe()))
    assert described["judged_by"]["features"] == "digits classifier, penultimate layer"
    assert len(described["judged_by"]["features_sha256"]) == 64
    stored = described["options"]
    assert (stored["features"], stored["compile_sampling"]) == ("digits-classifier", False)
    assert stored["reference_statistics"] == str(tmp_path / "digits.npz")
    named = SearchOptions(space=Path("space.py"), experiment="x", features="mine.pt")
    assert named.describe()["features"] == str(tmp_path / "mine.pt"), "a file's path holds anywhere"

    folder = tmp_path / "begun"
    folder.mkdir()
    (folder / "experiment.json").write_text(json.dumps(described))
    (folder / "space.py").write_text(SPACE)
    resumed = parse(resume=folder, sampling_precision="bfloat16").options
    assert (resumed.reference_statistics, resumed.features) == (tmp_path / "digits.npz", "digits-classifier")
    assert (resumed.sampling_precision, resumed.compile_sampling) == ("bfloat16", False)
    for name in ("features", "reference_statistics"):  # an experiment of an earlier version
        del described["options"][name]
    (folder / "experiment.json").write_text(json.dumps(described))
    assert parse(resume=folder).options.reference_statistics is None


@pytest.mark.parametrize(
    ("given", "precisions", "validation"),
    [
        ("", ("float32",), "float32"),
        ("'precision': 'bfloat16', ", ("bfloat16",), "bfloat16"),
        ("'precision': tune.choice(['bfloat16', 'float32']), ", ("bfloat16", "float32"), "float32"),
    ],
)
def test_what_trials_share_is_made_for_each_precision_of_the_space(parse, tmp_path, given, precisions, validation):
    space = SPACE.replace("param_space = {", f"param_space = {{{given}").split("seed_points")[0] + "seed_points = []\n"
    (tmp_path / "precisions.py").write_text(space)
    context = parse(space=tmp_path / "precisions.py").context
    assert (context.precisions, context.validation_precision) == (precisions, validation)


def test_bfloat16_on_a_gpu_without_it_is_refused_before_anything_runs(parse, tmp_path, monkeypatch):
    monkeypatch.setattr(SearchOptions, "evaluation_device", torch.device("cuda"))
    monkeypatch.setattr("maskpro.precision._computes_bfloat16", lambda device: False)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda device: "Tesla T4")
    parse()
    with pytest.raises(MaskproError, match="sampling_precision is bfloat16, which Tesla T4 can't compute in"):
        parse(sampling_precision="bfloat16")
    (tmp_path / "half.py").write_text(SPACE.replace("param_space = {", "param_space = {'precision': 'bfloat16', "))
    with pytest.raises(
        MaskproError, match="precision is bfloat16, which Tesla T4 can't compute in; allowed on it: float32"
    ):
        parse(space=tmp_path / "half.py")


@pytest.mark.slow
def test_how_images_are_read_is_recorded_and_kept_by_a_search_that_goes_on(parse, tmp_path, model_folder, image_folder):
    given = {"workload": "cifar10", "model": str(model_folder), "data": image_folder, "resize": "box", "crop": "none"}
    search = parse(**given, experiment="faces", timestep_spacing="trailing")
    described = search.describe()
    images = described["workload"]["images"]
    assert images["reading"] == {"resize": "box", "crop": "none", "background": "white"}
    assert images["read"] == {"train": 48, "validation": 6, "test": 6}
    folder = tmp_path / "faces"
    folder.mkdir()
    write_json(folder / "experiment.json", described)
    (folder / "space.py").write_text(SPACE)
    again = parse(resume=folder)
    assert torch.equal(again.workload.images.train, search.workload.images.train)
    assert again.options.timestep_spacing == "trailing"
    assert again.describe()["workload"] == described["workload"]
    assert parse(resume=folder, timestep_spacing="quad").options.timestep_spacing == "quad"
    # Experiments that began before these options keep what was done then.
    for name in ("resize", "crop", "background", "skip_unreadable", "timestep_spacing"):
        del described["options"][name]
    write_json(folder / "experiment.json", described)
    assert parse(resume=folder).options.crop == "centre"
    on_black = parse(**given, background="#000", experiment="black").describe()["workload"]["images"]["reading"]
    assert on_black == {"resize": "box", "crop": "none", "background": "black"}


@pytest.mark.slow
def test_layers_that_stay_dense_are_recorded_and_kept_by_a_search_that_goes_on(parse, tmp_path):
    search = parse(dense="mid_block up_blocks.0", experiment="dense")
    assert search.context.formats[0].dense == search.context.dense == ("mid_block", "up_blocks.0")
    layers = [row.layer for row in search.dense_layers.layers]
    assert layers
    assert all(layer.startswith(("mid_block.", "up_blocks.0.")) for layer in layers)
    folder = begun(search, [({"lr": 1.0, "batch_size": 16}, 100)])
    assert json.loads((folder / "experiment.json").read_text())["options"]["dense"] == ["mid_block", "up_blocks.0"]
    for again in (parse(resume=folder), parse(replay=folder)):
        assert again.context == replace(search.context, workload=again.context.workload, storage=again.context.storage)
        assert again.describe()["workload"]["dense_layers"] == search.describe()["workload"]["dense_layers"]
    with pytest.raises(MaskproError, match="dense is mid_block together with resume"):
        parse(resume=folder, dense="mid_block")
    with pytest.raises(
        MaskproError, match=r"a search with other layers that stay dense \(\['mid_block', 'up_blocks.0'\]\)"
    ):
        parse(warm_start=folder)
    assert len(parse(warm_start=folder, dense="mid_block up_blocks.0").warm_start) == 1
    with pytest.raises(MaskproError, match="dense holds 'tail', which matches no maskable layer"):
        parse(dense="tail")


def test_an_experiment_of_the_version_before_is_resumed_and_done_again(tmp_path):
    """Its record has every option by its name, those of the workload among the others."""
    record = Path(__file__).parents[1] / "records" / "experiment_format_5.json"
    described = json.loads(record.read_text())
    folder = tmp_path / "earlier"
    folder.mkdir()
    (folder / "experiment.json").write_text(record.read_text())
    (folder / "space.py").write_text(described["space"]["source"])
    resumed = parse_command({"num_generated": 32}, JobOptions(resume=folder), now=NOW)
    replayed = parse_command({"results_dir": tmp_path}, JobOptions(replay=folder), now=NOW)
    for search, changed in ((resumed, {"num_generated": 32}), (replayed, {})):
        again = json.loads(json.dumps(search.describe()))
        wanted = described["options"] | changed | {"max_concurrent": None}  # of one session
        for name in ("space", "experiment", "results_dir"):
            del again["options"][name], wanted[name]
        assert {name: again["options"][name] for name in wanted} == wanted
        assert again["workload"] == described["workload"] | {"budgets": described["workload"]["budgets"] | changed}
        assert again["judged_by"] == described["judged_by"]
        assert again["trial"] == described["trial"]
        assert again["min_completed"] == 3, "so a complete search needs no more trials"
        assert [plan.params for plan in search.planned] == [plan["params"] for plan in described["planned"]]


@pytest.mark.parametrize(
    ("name", "value", "shown"),
    [
        ("options", [], "[]"),
        ("num_trials", "3", "'3'"),
        ("planned", None, "None"),
        ("workload", "digits", "'digits'"),
        ("is_replay", "gone", "None"),
        ("min_completed", "4", "'4'"),
        ("space.source", None, "None"),
        ("space.param_space", [], "[]"),
        ("workload.model_hash", 5, "5"),
        ("trial.max_samples", "many", "'many'"),
        ("planned", [{"params": {}, "weed": 0}], "{'params': {}, 'weed': 0}"),
    ],
)
def test_a_record_that_somebody_has_changed_is_refused(parse, tmp_path, name, value, shown):
    record = {
        "format": EXPERIMENT_FORMAT,
        "options": {},
        "space": {"source": SPACE, "param_space": {}},
        "workload": {"model_hash": "ab"},
        "trial": {"max_samples": 288, "report_samples": 96},
        "num_trials": 3,
        "planned": [],
        "is_replay": False,
    }
    table, _, entry = name.rpartition(".")
    (record[table] if table else record)[entry] = value
    if value == "gone":
        del record[name]
    write_json(tmp_path / "experiment.json", record)
    expected = f"{tmp_path}/experiment.json has {shown} as {name}; allowed: the file as it was written"
    with pytest.raises(MaskproError, match=f"^{re.escape(expected)}$"):
        parse(resume=tmp_path)


@pytest.mark.parametrize(
    ("name", "value"),
    [("crop", None), ("background", []), ("seed", "x"), ("cpus_per_trial", "two"), ("data", []), ("frechet", None)],
)
def test_an_option_of_a_record_that_somebody_has_changed_is_refused(name, value):
    expected = f"the experiment's record has {value!r} as option {name}; allowed: the record as it was written"
    with pytest.raises(MaskproError, match=f"^{re.escape(expected)}$"):
        SearchOptions.of_record({name: value}, space=Path("space.py"), experiment="e")
    right = {"crop": "none", "seed": 3, "cpus_per_trial": 2, "data": "images", "seed_points": [1], "gpus_per_trial": None}
    options = SearchOptions.of_record(right, space=Path("space.py"), experiment="e")
    assert (options.data, options.cpus_per_trial, options.seed_points) == (Path("images"), 2, (1,))


def test_a_space_that_was_narrowed_below_its_trials_is_refused(parse, tmp_path):
    folder = begun(parse(experiment="e"), [({"lr": 1.5, "batch_size": 16}, 934)])
    (folder / "space.py").write_text(SPACE.replace("loguniform(0.5, 2.0)", "loguniform(0.5, 1.2)").replace("1.5", "1.1"))
    search = parse(resume=folder)
    with pytest.raises(
        MaskproError, match=r"parameters .*1\.5.* do not fit the search space .*; allowed: space\.py of the"
    ):
        Experiment(search=search, history=History(folder / "history.jsonl")).search_state()
