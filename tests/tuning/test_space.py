from pathlib import Path

import pytest

from maskpro.errors import MaskproError
from maskpro.tuning.space import load_space

SPACES = sorted((Path(__file__).parents[2] / "search_spaces").glob("*.py"))
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


@pytest.mark.parametrize("path", SPACES, ids=lambda path: path.name)
def test_the_ready_made_spaces_hold_the_five_configurations(path):
    space = load_space(path)
    assert list(space.seed_points) == CONFIGURATIONS
    assert space.seed_point_names == ("conservative", "standard", "aggressive", "efficient", "finetuning")
    assert space.num_trials >= 12
    assert space.domains.keys() == {"lr", "logits", "batch_size", "dataset_size"}


def test_a_small_space_gets_defaults(tmp_path):
    space = load_space(write(tmp_path, GOOD))
    assert (space.workload, space.pattern, space.layout, space.targets) == ("digits", "2:4", "channel", ("all",))
    assert space.describe()["param_space"]["batch_size"]["attributes"] == {"choices": [16, 32]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("param_space = {", "can't be run: SyntaxError"),
        ("1 / 0", "can't be run: ZeroDivisionError"),
        ("seed_points = []", "does not define param_space; it needs param_space and seed_points"),
        ("param_space = {'lr': 1.0}", "does not define seed_points"),
        (GOOD + "num_trial = 3", "defines num_trial, which means nothing here; allowed: param_space"),
        (GOOD + "param_space = {}", "param_space is {}; allowed: a dictionary with at least one parameter"),
        (GOOD + "param_space['rate'] = 1.0", "unknown parameter 'rate'; allowed: lr, logits, batch_size"),
        (GOOD + "param_space['lr'] = tune.uniform(2.0, 1.0)", r"param_space\['lr'\] has the empty range 2.0 to 1.0"),
        (GOOD + "param_space['lr'] = tune.choice([])", r"param_space\['lr'\] is an empty choice"),
        (
            GOOD + "param_space['lr'] = tune.uniform(-1.0, 1.0)",
            r"param_space\['lr'\]: lr is -1.0; allowed: a number above 0",
        ),
        (GOOD + "param_space['lr'] = -0.5", r"param_space\['lr'\]: lr is -0.5; allowed"),
        (GOOD + "param_space['lr'] = tune.randn(1, 1)", r"param_space\['lr'\] can't be searched"),
        (GOOD + "param_space['lr'] = tune.grid_search([1.0])", r"param_space\['lr'\]: lr is {'grid_search'"),
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
        (GOOD + "param_space['raw_step'] = True", "param_space allows raw_step True with straight_through"),
        (GOOD + "targets = 5", "targets is 5; allowed: a part of layer names, or a list"),
        (GOOD + "seed_points = [3]", "seed point 1 is 3; allowed: a dictionary"),
        (GOOD + "seed_points = 3", "seed_points is 3; allowed: a list"),
        (GOOD + "workload = 'mnist'", "workload is 'mnist'; allowed: digits, cifar10"),
        (GOOD + "pattern = '5:4'", "pattern is 5:4; allowed"),
        (GOOD + "layout = 'rows'", "layout is 'rows'; allowed: channel, flattened"),
        (GOOD + "num_trials = 0", "num_trials is 0; allowed: a whole number of at least 1"),
        (GOOD + "max_samples = 1.5", "max_samples is 1.5; allowed"),
    ],
)
def test_mistakes_are_named_with_file_field_and_value(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(MaskproError, match=message) as caught:
        load_space(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_space_file_is_named(tmp_path):
    with pytest.raises(MaskproError, match=r"space is .*none.py; no such file"):
        load_space(tmp_path / "none.py")


def test_integer_bounds_are_read_as_ray_reads_them(tmp_path):
    text = GOOD + "param_space['dataset_size'] = tune.lograndint(100, 201)\nseed_points[0]['dataset_size'] = "
    assert load_space(write(tmp_path, text + "200")).seed_points[0]["dataset_size"] == 200
    with pytest.raises(MaskproError, match="dataset_size = 201, outside param_space; allowed: 100 to 200"):
        load_space(write(tmp_path, text + "201"))
