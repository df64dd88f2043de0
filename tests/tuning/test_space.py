import json
from pathlib import Path

import pytest
from optuna.trial import create_trial

from maskpro.errors import MaskproError
from maskpro.tuning.space import load_space

SPACES = Path(__file__).parents[2] / "search_spaces"
# The five configurations of the original, from its documentation.
CONFIGURATIONS = [
    {"dataset_size": 5_000, "batch_size": 16, "lr": 0.5, "logits": 3.0},
    {"dataset_size": 20_000, "batch_size": 64, "lr": 1.0, "logits": 5.0},
    {"dataset_size": 50_000, "batch_size": 32, "lr": 2.0, "logits": 7.0},
    {"dataset_size": 25_000, "batch_size": 128, "lr": 1.5, "logits": 6.0},
    {"dataset_size": 30_000, "batch_size": 32, "lr": 0.8, "logits": 10.0},
]

GOOD = """
from ray import tune
param_space = {"lr": tune.loguniform(0.5, 2.0), "batch_size": tune.choice([16, 32])}
seed_points = [{"lr": 1.0, "batch_size": 16}]
"""


def write(tmp_path, text):
    path = tmp_path / "space.py"
    path.write_text(text)
    return path


def test_settings_of_one_estimator_alone_can_be_fixed_with_it(tmp_path):
    fixed = {"estimator": "gumbel_softmax", "annealing": "linear", "hidden_targets": 1.0}
    assert load_space(write(tmp_path, GOOD + f"param_space |= {fixed}")).fixed == fixed


@pytest.mark.parametrize("name", ["default.py", "policy_gradient.py", "five_configurations.py"])
def test_the_ready_made_spaces_hold_the_five_configurations(name):
    space = load_space(SPACES / name)
    neutral: dict[str, object] = {"magnitude_prior": 0.0, "hidden_targets": 0.0}
    neutral |= {"masks_per_step": 1, "targets": "all", "lr_decay": "linear"}
    own = {parameter: neutral[parameter] for parameter in space.domains if parameter not in CONFIGURATIONS[0]}
    assert list(space.seed_points[:5]) == [configuration | own for configuration in CONFIGURATIONS]
    assert space.seed_point_names[:5] == ("conservative", "standard", "aggressive", "efficient", "finetuning")
    assert space.domains.keys() >= {"lr", "logits", "batch_size", "dataset_size"}
    if name == "five_configurations.py":
        assert (space.num_trials, space.scheduler) == (5, "none")
    else:
        assert space.num_trials >= 12


def test_the_extended_space_searches_the_choices_of_the_mask_one_by_one():
    space = load_space(SPACES / "extended.py")
    assert space.domains.keys() >= {"estimator", "pattern", "layout", "targets"}
    reference, *others = space.seed_points
    differences = [[name for name in reference if point[name] != reference[name]] for point in others]
    assert differences == [["estimator"], ["pattern"], ["layout"], ["targets"], ["targets"]]


@pytest.mark.parametrize("path", sorted(SPACES.glob("*.py")), ids=lambda path: path.name)
def test_every_ready_made_space_has_room_for_its_seed_points(path):
    space = load_space(path)
    assert space.num_trials >= len(space.seed_points) > 0


def test_a_small_space_gets_defaults(tmp_path):
    space = load_space(write(tmp_path, GOOD))
    assert (space.workload, space.pattern, space.layout, space.targets) == ("digits", "2:4", "channel", ("all",))
    assert (space.searcher, space.scheduler, space.num_reports, space.reduction_factor) == ("optuna", "asha", 27, 3)
    assert (space.promotion, space.rung_lr_exponent) == ("resume", 0.0)
    assert space.describe()["param_space"]["batch_size"]["attributes"] == {"choices": [16, 32]}


def test_a_space_names_its_searcher_and_its_early_stopping(tmp_path):
    text = GOOD + "searcher = 'random'\nscheduler = 'median'\nnum_reports = 4\nreduction_factor = 2\npromotion = 'restart'"
    space = load_space(write(tmp_path, text))
    assert (space.searcher, space.scheduler, space.num_reports, space.reduction_factor) == ("random", "median", 4, 2)
    described = space.describe()
    assert (described["searcher"], described["scheduler"], described["num_reports"]) == ("random", "median", 4)
    assert described["promotion"] == "restart"


def test_a_space_brings_a_sampler_and_a_pruner_of_its_own(tmp_path):
    text = (
        GOOD
        + """
from optuna.pruners import PercentilePruner
from optuna.samplers import TPESampler
def searcher(seed):
    return TPESampler(seed=seed, n_ei_candidates=5)
scheduler = PercentilePruner(25.0, n_warmup_steps=2_000)
"""
    )
    space = load_space(write(tmp_path, text))
    assert (space.searcher(3)._n_ei_candidates, space.scheduler._n_warmup_steps) == (5, 2_000)
    described = space.describe()
    assert (described["searcher"], described["scheduler"]) == ("TPESampler", "PercentilePruner")
    json.dumps(described)


FORMATS = """
param_space |= {
    "pattern": tune.choice(["2:4", "1:4", "4:8"]),
    "layout": tune.choice(["channel", "flattened"]),
    "targets": tune.choice(["all", "conv attn"]),
}
seed_points[0] |= {"pattern": "2:4", "layout": "channel", "targets": "all"}
"""


def test_the_format_of_the_mask_can_be_searched_like_any_parameter(tmp_path):
    space = load_space(write(tmp_path, GOOD + FORMATS))
    assert space.domains.keys() == {"lr", "batch_size", "pattern", "layout", "targets"}
    assert space.choices("pattern", space.pattern) == ("2:4", "1:4", "4:8")
    assert space.choices("layout", space.layout) == ("channel", "flattened")
    assert space.choices("targets", None) == ("all", "conv attn")
    assert space.seed_points[0]["layout"] == "channel"


def test_the_format_of_the_mask_can_be_fixed_beside_the_searched_parameters(tmp_path):
    space = load_space(write(tmp_path, GOOD + "param_space |= {'pattern': '1:4', 'target': 'noise'}"))
    assert space.fixed == {"pattern": "1:4", "target": "noise"}
    assert space.choices("pattern", space.pattern) == ("1:4",)
    assert space.choices("layout", space.layout) == ("channel",)


def test_every_seed_point_that_is_let_through_can_be_told_to_optuna(tmp_path):
    text = (
        GOOD + FORMATS + "param_space |= {'dataset_size': tune.lograndint(100, 200), 'logits': tune.uniform(1.0, 10.0)}\n"
    )
    space = load_space(write(tmp_path, text + "seed_points[0] |= {'dataset_size': 199, 'logits': 10}"))
    for point in space.seed_points:
        assert create_trial(params=point, distributions=space.distributions, value=0.0).params == point


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("param_space = {", "can't be run: SyntaxError"),
        ("1 / 0", "can't be run: ZeroDivisionError"),
        ("import sys; sys.exit(3)", "can't be run: SystemExit: 3"),
        ("seed_points = []", "does not define param_space; it needs param_space and seed_points"),
        ("param_space = {'lr': 1.0}", "does not define seed_points"),
        (GOOD + "num_trial = 3", "defines num_trial, which means nothing here; allowed: param_space"),
        (GOOD + "param_space = {}", "param_space is {}; allowed: a dictionary with at least one parameter"),
        (GOOD + "param_space['rate'] = 1.0", "unknown parameter 'rate'; allowed: lr, logits, magnitude_prior, batch_size"),
        (GOOD + "param_space['lr'] = tune.uniform(2.0, 1.0)", r"param_space\['lr'\] has the empty range 2.0 to 1.0"),
        (GOOD + "param_space['lr'] = tune.choice([])", r"param_space\['lr'\] is an empty choice"),
        (
            GOOD + "param_space['lr'] = tune.uniform(-1.0, 1.0)",
            r"param_space\['lr'\]: lr is -1.0; allowed: a number above 0",
        ),
        (GOOD + "param_space['lr'] = -0.5", r"param_space\['lr'\]: lr is -0.5; allowed"),
        (GOOD + "param_space['lr'] = tune.randn(1, 1)", r"param_space\['lr'\] can't be searched"),
        (GOOD + "param_space['lr'] = tune.grid_search([1.0])", r"param_space\['lr'\] is {'grid_search'.*nothing nested"),
        (
            GOOD + "param_space['target'] = 'student'",
            r"param_space\['target'\]: target is 'student'; allowed: teacher, noise",
        ),
        (GOOD + "param_space['dataset_size'] = 20", "batch_size 32 with dataset_size 20; allowed: batch_size at most"),
        (GOOD + "seed_points = [{'lr': 1.0}]", "seed point 1 does not name batch_size; allowed: exactly lr, batch_size"),
        (GOOD + "seed_points[0]['logits'] = 3.0", "seed point 1 names, beside the searched parameters, logits"),
        (GOOD + "seed_points[0]['lr'] = 9.0", "seed point 1 has lr = 9.0, outside param_space; allowed: 0.5 to 2.0"),
        (
            GOOD + "seed_points[0]['batch_size'] = 8",
            "seed point 1 has batch_size = 8, outside param_space; allowed: 16, 32",
        ),
        (GOOD + "seed_points[0]['lr'] = '1'", "seed point 1: lr is '1'; allowed: a number above 0"),
        (GOOD + "param_space = {'lr': 1.0}\nseed_points = []", "param_space searches nothing; allowed: at least one"),
        (
            GOOD + "param_space['raw_step'] = True",
            r"what can't go together: raw_step is True with .* policy_gradient only \(estimator straight_through\)",
        ),
        (
            GOOD + "param_space |= {'estimator': 'policy_gradient', 'raw_step': True, 'optimizer': 'adam'}",
            "what can't go together: raw_step is True with optimizer adam; allowed: sgd or auto",
        ),
        (
            GOOD + "param_space['masks_per_step'] = 4",
            "what can't go together: masks_per_step is 4 with estimator straight_through; allowed: with policy_gradient",
        ),
        (
            GOOD + "param_space['annealing'] = 'linear'",
            "what can't go together: annealing is linear with estimator straight_through; allowed",
        ),
        (
            GOOD + "param_space |= {'hidden_targets': 1.0, 'compile': True}",
            "what can't go together: hidden_targets is .* with compile; allowed: 0",
        ),
        (
            GOOD + "param_space |= {'estimator': 'gumbel_softmax', 'pattern': '8:16'}",
            "what can't go together: pattern is 8:16, which has 12,870 masks a group",
        ),
        (GOOD + "param_space['masks_per_step'] = 0", r"param_space\['masks_per_step'\]: masks_per_step is 0; allowed"),
        (GOOD + "initial_mask = 'obs'", "initial_mask is 'obs'; allowed: magnitude, wanda, sparsegpt, random"),
        (
            GOOD + "param_space['initial_mask'] = tune.choice(['wanda', 'obs'])",
            r"param_space\['initial_mask'\]: initial_mask is 'obs'; allowed: magnitude, wanda",
        ),
        (GOOD + "targets = 5", "targets is 5; allowed: a part of layer names, or a list"),
        (GOOD + "seed_points = [3]", "seed point 1 is 3; allowed: a dictionary"),
        (GOOD + "seed_points = 3", "seed_points is 3; allowed: a list"),
        (GOOD + "workload = 'mnist'", "workload is 'mnist'; allowed: digits, cifar10"),
        (GOOD + "pattern = '5:4'", "pattern is 5:4; allowed"),
        (GOOD + "layout = 'rows'", "layout is 'rows'; allowed: channel, flattened"),
        (GOOD + "num_trials = 0", "num_trials is 0; allowed: a whole number of at least 1"),
        (GOOD + "max_samples = 1.5", "max_samples is 1.5; allowed"),
        (GOOD + "promotion = 'anew'", "promotion is 'anew'; allowed: resume or restart"),
        (GOOD + "promotion = 'restart'\nrung_lr_exponent = 1.5", "rung_lr_exponent is 1.5; allowed: a number from 0 to 1"),
        (GOOD + "promotion = 'restart'\nrung_lr_exponent = '0'", "rung_lr_exponent is '0'; allowed: a number from 0 to 1"),
        (GOOD + "rung_lr_exponent = 0.3", "rung_lr_exponent is 0.3 with promotion 'resume', where no rung has a run"),
        (GOOD + "num_reports = 0", "num_reports is 0; allowed: a whole number of at least 1"),
        (GOOD + "num_reports = '9'", "num_reports is '9'; allowed: a whole number of at least 1"),
        (GOOD + "reduction_factor = 1", "reduction_factor is 1; allowed: a whole number of at least 2"),
        (GOOD + "searcher = 'hyperopt'", "searcher is 'hyperopt'; allowed: optuna, tpe, gp, qmc, random"),
        (GOOD + "scheduler = 'hyperband'", "scheduler is 'hyperband'; allowed: asha, median, none"),
        (GOOD + "scheduler = None", "scheduler is None; allowed: asha, median, none"),
        (GOOD + "def param_space(trial): return {}", "param_space is a function; allowed: a dictionary"),
        (GOOD + "param_space = lambda trial: {}", "param_space is a function; allowed: a dictionary"),
        (GOOD + "param_space['lr'] = {'low': 1.0}", r"param_space\['lr'\] is {'low': 1.0}; allowed: one value or one"),
        (
            GOOD + "param_space['lr'] = {'low': tune.uniform(1.0, 2.0)}",
            r"param_space\['lr'\] is {'low': .*}; allowed: one value or one tune domain \(nothing nested\)",
        ),
        (GOOD + "param_space['lr'] = tune.sample_from(lambda c: 1)", r"param_space\['lr'\] can't be searched .*; allowed"),
        (
            GOOD + "param_space['pattern'] = tune.choice(['2:4', '5:4'])",
            r"param_space\['pattern'\]: pattern is 5:4; allowed: n:m with 0 < n < m",
        ),
        (
            GOOD + "param_space['layout'] = 'rows'",
            r"param_space\['layout'\]: layout is 'rows'; allowed: channel, flattened",
        ),
        (GOOD + "param_space['targets'] = ' '", r"param_space\['targets'\]: targets is ' '; allowed: a text"),
        (GOOD + FORMATS + "seed_points[0]['pattern'] = '1:2'", "seed point 1 has pattern = '1:2', outside param_space"),
        (GOOD + FORMATS + "del seed_points[0]['layout']", "seed point 1 does not name layout; allowed: exactly lr"),
    ],
)
def test_mistakes_are_named_with_file_field_and_value(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(MaskproError, match=message) as caught:
        load_space(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_space_with_a_byte_order_mark_is_its_text_without_it(tmp_path):
    path = write(tmp_path, GOOD)
    plain = load_space(path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert load_space(path).source == plain.source == GOOD


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "param_space['lr'] = tune.choice([1.0, {'low': 1.0}])",
            r"param_space\['lr'\] is {'low': 1.0}; allowed: one value",
        ),
        (
            "param_space['targets'] = tune.choice([['attn']])",
            r"param_space\['targets'\]: targets is \['attn'\]; allowed: a text",
        ),
    ],
)
def test_a_choice_of_lists_or_dictionaries_is_refused(tmp_path, text, message):
    with (
        pytest.raises(MaskproError, match=message),
        pytest.warns(UserWarning, match="Choices for a categorical distribution should be a tuple of None, bool, int"),
    ):
        load_space(write(tmp_path, GOOD + text))


def test_a_missing_space_file_is_named(tmp_path):
    with pytest.raises(MaskproError, match=r"space is .*none.py; no such file"):
        load_space(tmp_path / "none.py")


def test_integer_bounds_are_read_as_ray_reads_them(tmp_path):
    text = GOOD + "param_space['dataset_size'] = tune.lograndint(100, 201)\nseed_points[0]['dataset_size'] = "
    assert load_space(write(tmp_path, text + "200")).seed_points[0]["dataset_size"] == 200
    with pytest.raises(MaskproError, match="dataset_size = 201, outside param_space; allowed: 100 to 200"):
        load_space(write(tmp_path, text + "201"))


def test_a_space_may_search_masks_per_step_and_initial_masks(tmp_path):
    text = (
        GOOD
        + """
param_space |= {
    "estimator": "policy_gradient",
    "masks_per_step": tune.choice([1, 4]),
    "initial_mask": tune.choice(["magnitude", "wanda"]),
}
seed_points[0] |= {"masks_per_step": 4, "initial_mask": "wanda"}
"""
    )
    assert load_space(write(tmp_path, text)).choices("initial_mask", "magnitude") == ("magnitude", "wanda")
