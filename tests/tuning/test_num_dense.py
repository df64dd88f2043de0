"""How many of the most sensitive layers stay dense: what a search makes of it before Ray starts."""

import copy
import datetime
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from shared_fixtures import CPU

from benchmarks.toy_workload import TOY, perceptron, toy_workload
from maskpro.dense_curve import dense_curve, sensitive_first
from maskpro.errors import MaskproError
from maskpro.files import write_json
from maskpro.initial_masks import magnitude_masked_model
from maskpro.masked_model import MaskedModel
from maskpro.objectives import HeldOutMeans
from maskpro.pattern import NMPattern
from maskpro.schedule.history import COMMON_FIDELITY, METRIC, SHARE, History
from maskpro.search_options import JobOptions
from maskpro.tuning.command import parse_command
from maskpro.tuning.shared import SharedValues, mask_format
from maskpro.tuning.space import load_space
from maskpro.tuning.trainable import MaskTrainable
from maskpro.workloads import WORKLOADS

NOW = datetime.datetime(2026, 1, 2, 3, 4, 5)
CHOICE = "tune.choice([2, 0, 1])"
SPACE = """
from ray import tune
workload = "toy"
num_trials = 3
scheduler = "none"
param_space = {"lr": tune.loguniform(2.0, 8.0), "batch_size": 8, "dataset_size": 64, "num_dense": tune.choice([2, 0, 1])}
seed_points = [{"lr": 5.0, "num_dense": 0}]
"""
FIXED = SPACE.replace(CHOICE, "1").replace(', "num_dense": 0}', "}")


@pytest.fixture
def parse(tmp_path, monkeypatch):
    """Parse options given beside a space in text, of a network of three equal layers: 0, 2 and 4."""
    monkeypatch.setitem(WORKLOADS, "toy", TOY)

    def parse(text=SPACE, *, job=None, **given):
        (tmp_path / "small.py").write_text(text)
        if job is None:
            given = {"space": tmp_path / "small.py", "results_dir": tmp_path, "experiment": "x", **given}
        return parse_command(given, job or JobOptions(), now=NOW)

    return parse


def begun(search, reports=()):
    """The folder of an experiment with a completed trial of each (params, figures)."""
    folder = search.options.folder
    folder.mkdir()
    write_json(folder / "experiment.json", search.describe())
    (folder / "space.py").write_text(search.space.source)
    history = History(folder / "history.jsonl")
    history.session(search.num_trials, time="now")
    for params, figures in reports:
        number = history.start(params, source="optuna", seed=0).number
        history.report(number, {"num_samples_seen": 480, "done": True, **figures}, stopped=False)
        history.checkpoint(number, "somewhere", 480)
    return folder


def exact(*names):
    return tuple(f"={name}" for name in names)


def test_a_whole_name_is_that_layer_alone_though_it_is_part_of_another_name():
    network = torch.nn.ModuleDict(
        {"conv": torch.nn.Linear(4, 4), "block": torch.nn.ModuleDict({"conv": torch.nn.Linear(4, 4)})}
    )
    pattern = NMPattern(2, 4)

    def masked(*dense):
        return [layer.name for layer in MaskedModel(copy.deepcopy(network), pattern=pattern, dense=dense).layers]

    assert masked("=conv") == ["block.conv"]
    assert masked("=block.conv") == ["conv"]
    with pytest.raises(MaskproError, match="dense leaves no layer to be masked"):
        masked("conv")
    with pytest.raises(MaskproError, match="dense holds '=block', which matches no maskable layer"):
        masked("=block")


def test_the_order_is_that_of_the_curve_and_counts_what_is_learned_alone():
    workload = toy_workload(perceptron(layers=5))
    form = {"pattern": NMPattern(2, 4), "layout": "channel"}
    initial = magnitude_masked_model(workload.model, **form)
    heard = []
    order = sensitive_first(workload, initial, device=CPU, say=heard.append)
    rows = dense_curve(workload, initial, device=CPU)
    assert " ".join(row["layers"] for row in rows).split() == order
    assert "5 layers" in heard[0]
    some = magnitude_masked_model(workload.model, **form, targets=("2", "6"), dense=("4",))
    wanted = [name for name in order if name in ("2", "6")]
    assert sensitive_first(workload, some, device=CPU, say=heard.append) == wanted


def test_each_number_has_a_format_of_exact_names_and_a_share(parse):
    search = parse()
    order = list(search.context.dense_order)
    assert sorted(order) == ["0", "2", "4"]
    assert list(search.context.dense_order.values()) == pytest.approx([1 / 3] * 3)
    forms = search.context.formats
    assert [form.dense for form in forms] == [(), exact(order[0]), exact(*order[:2])], "the fewest first"
    assert [search.context.sparse_shares[form] for form in forms] == pytest.approx([1, 2 / 3, 1 / 3])
    for count, form in enumerate(forms):
        assert mask_format(search.context, {"num_dense": count}) == form
    assert mask_format(search.context, {}) == forms[0]
    assert search.dense_layers.layers == (), "what stays dense in every trial"
    assert search.space.objectives == (METRIC, SHARE)


def test_layers_that_dense_names_are_not_counted(parse):
    search = parse(SPACE.replace(CHOICE, "tune.choice([0, 1])"), dense="2")
    order = list(search.context.dense_order)
    assert sorted(order) == ["0", "4"]
    assert [form.dense for form in search.context.formats] == [("2",), ("2", *exact(order[0]))]
    assert list(search.context.sparse_shares.values()) == pytest.approx([2 / 3, 1 / 3])


def test_a_fixed_number_is_no_second_objective(parse):
    for text in (FIXED, SPACE.replace(CHOICE, "tune.choice([1])").replace('"num_dense": 0}', '"num_dense": 1}')):
        search = parse(text.replace('scheduler = "none"', ""))
        assert (search.space.objectives, search.scheduler) == ((METRIC,), "asha")
        (form,) = search.context.formats
        assert form.dense == exact(next(iter(search.context.dense_order)))
        assert search.context.sparse_shares == {}
        assert [row.layer for row in search.dense_layers.layers] == [form.dense[0].removeprefix("=")]
    assert "dense_order" not in parse(FIXED.replace(', "num_dense": 1', "")).describe()


def test_the_order_is_recorded_and_never_found_out_again(parse, monkeypatch, tmp_path):
    search = parse()
    folder = begun(search)
    described = json.loads((folder / "experiment.json").read_text())
    assert described["dense_order"] == search.context.dense_order

    def fail(*arguments, **named):
        raise AssertionError("the layers are judged once")

    monkeypatch.setattr("maskpro.tuning.search.sensitive_first", fail)
    again = parse(job=JobOptions(resume=folder))
    assert again.context.formats == search.context.formats
    assert again.context.sparse_shares == search.context.sparse_shares
    # Whatever another machine would find: the record counts.
    described["dense_order"] = dict(reversed(described["dense_order"].items()))
    write_json(folder / "experiment.json", described)
    for job in (JobOptions(resume=folder), JobOptions(replay=folder)):
        order = list(parse(job=job, **({"results_dir": tmp_path} if job.replay else {})).context.dense_order)
        assert order == list(reversed(search.context.dense_order))
    del described["dense_order"]
    write_json(folder / "experiment.json", described)
    with pytest.raises(MaskproError, match=r"has None as dense_order; allowed: the file as it was written$"):
        parse(job=JobOptions(resume=folder))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (
            CHOICE,
            "tune.randint(0, 3)",
            r"param_space\['num_dense'\] is a tune domain of the kind Integer; allowed: a whole",
        ),
        (
            CHOICE,
            "tune.uniform(0, 2)",
            r"param_space\['num_dense'\] is a tune domain of the kind Float; allowed: a whole nu",
        ),
        (
            CHOICE,
            "tune.choice([0, 1.0])",
            r"param_space\['num_dense'\]: num_dense is 1.0; allowed: a whole number of at least",
        ),
        (
            CHOICE,
            "tune.choice([True, 2])",
            r"param_space\['num_dense'\]: num_dense is True; allowed: a whole number of at l",
        ),
        (
            CHOICE,
            "tune.choice([0, -1])",
            r"param_space\['num_dense'\]: num_dense is -1; allowed: a whole number of at least",
        ),
        (
            CHOICE,
            "tune.choice([0, 3])",
            r"num_dense is 3; allowed: at most 2, one less than the layers that would be learned",
        ),
        (
            '"none"',
            '"asha"',
            r"scheduler is asha together with a choice of num_dense; allowed: none \(early stopping can't",
        ),
        ('scheduler = "none"', "min_sparse_share = 1.5", "min_sparse_share is 1.5; allowed: None, or with a choice of num"),
        ('scheduler = "none"', "min_sparse_share = True", "min_sparse_share is True; allowed: None, or with a choice of n"),
        (
            f"{CHOICE}}}",
            "tune.choice([0])}; min_sparse_share = 0.5",
            "min_sparse_share is 0.5; allowed: None, or with a choice",
        ),
        (
            f'{CHOICE}}}\nseed_points = [{{"lr": 5.0, "num_dense": 0}}]',
            "tune.choice([1, 2])}; seed_points = []; min_sparse_share = 0.9",
            "min_sparse_share is 0.9, which no num_dense reaches; allowed: at most 0.6666$",
        ),
    ],
)
def test_what_can_not_be_is_refused_in_one_sentence(parse, old, new, message, tmp_path):
    assert old in SPACE
    with pytest.raises(MaskproError, match=message) as caught:
        parse(SPACE.replace(old, new))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("scheduler", ["asha", "median"])
def test_early_stopping_that_the_command_line_names_is_refused_as_well(parse, scheduler):
    with pytest.raises(MaskproError, match=f"^scheduler is {scheduler} together with a choice of num_dense; allowed: none"):
        parse(scheduler=scheduler)
    assert parse(SPACE.replace('"none"', '"asha"'), scheduler="none").scheduler == "none"
    assert parse(SPACE.replace('"none"', '"asha"'), only_seed_points=True).scheduler == "none"


def test_a_target_of_which_nothing_would_be_left_is_refused(parse):
    text = SPACE.replace('"num_dense": tune', '"targets": tune.choice(["all", "{}"]), "num_dense": tune')
    text = text.replace('"num_dense": 0}', '"num_dense": 0, "targets": "all"}')
    first, *_, last = parse().context.dense_order
    with pytest.raises(
        MaskproError, match=rf"targets holds '{first}', which matches only layers that stay dense: {first} is"
    ):
        parse(text.replace("{}", first))
    assert parse(text.replace("{}", last)).context.sparse_shares


def test_a_warm_start_is_told_with_the_shares_of_this_search(parse, tmp_path):
    first = parse(experiment="first")
    trials = [({"lr": 4.0, "num_dense": count}, {METRIC: 0.5 - count / 10}) for count in (0, 2)]
    folder = begun(first, trials)
    warm = parse(warm_start=folder)
    assert [(params, value, share) for params, value, _, _, share in warm.warm_start] == [
        ({"lr": 4.0, "num_dense": 0}, 0.5, 1.0),
        ({"lr": 4.0, "num_dense": 2}, 0.3, pytest.approx(1 / 3)),
    ]
    # The same number is of other layers where the order is another one.
    described = json.loads((folder / "experiment.json").read_text())
    described["dense_order"] = dict(reversed(described["dense_order"].items()))
    write_json(folder / "experiment.json", described)
    with pytest.raises(MaskproError, match="a search with another order of layers for num_dense"):
        parse(warm_start=folder)
    plain = SPACE.replace(f', "num_dense": {CHOICE}', "").replace(', "num_dense": 0', "")
    without = begun(parse(plain, experiment="plain"), [({"lr": 4.0}, {METRIC: 0.5})])
    with pytest.raises(MaskproError, match="a search with another order of layers for num_dense"):
        parse(warm_start=without)
    assert len(parse(plain, warm_start=without).warm_start) == 1


def test_a_trial_reports_what_compares_it_with_those_of_other_numbers(parse, monkeypatch):
    monkeypatch.setattr("ray.get_gpu_ids", list)
    monkeypatch.setattr("torch.set_num_threads", lambda count: None)
    search = parse(max_samples=160)
    validation = search.workload.held_out_samples("validation", CPU)
    initial = {form: HeldOutMeans(0.5, 0.1 * (3 - number)) for number, form in enumerate(search.context.formats)}
    shared = SharedValues(dense_val_loss=validation.judge(search.workload.model).means().loss, initial=initial)

    class Started(MaskTrainable):
        def setup(self, config):
            super().setup(config, context=search.context, shared=shared)

    own = {"trial": 1, "seed": 0, "checkpoint": "", "promoted": False, "folder": "trial_00001", "budget": None}
    for count, form in enumerate(search.context.formats):
        settings = {**search.space.fixed, "lr": 5.0, "num_dense": count}
        actor = Started({**settings, **own})
        masked = actor._trainer.masked
        assert len(masked.layers) == 3 - count
        metrics = actor.train()
        assert metrics[SHARE] == search.context.sparse_shares[form]
        assert metrics["fidelity"] == pytest.approx(1 - metrics[METRIC] / initial[form].error)
        assert metrics[COMMON_FIDELITY] == pytest.approx(1 - metrics[METRIC] / 0.3)
    search = parse(FIXED, max_samples=160)
    shared = replace(shared, initial={search.context.formats[0]: initial[form]})
    assert not {SHARE, COMMON_FIDELITY} & Started({**search.space.fixed, "lr": 5.0, **own}).train().keys()


def test_the_ready_made_space_searches_it_around_the_best_known_settings():
    spaces = Path(__file__).parents[2] / "search_spaces"
    space, default = load_space(spaces / "dense_layers.py"), load_space(spaces / "default.py")
    best = dict(zip(default.seed_point_names, default.seed_points, strict=True))["best known"]
    assert (space.scheduler, len(space.objectives)) == ("none", 2)
    for point in space.seed_points:
        settings = space.fixed | point
        assert {name: settings[name] for name in best} == best
    assert [point["num_dense"] for point in space.seed_points] == list(space.choices("num_dense", 0))
    assert default.fixed.items() <= space.fixed.items()
    assert space.min_sparse_share is not None
