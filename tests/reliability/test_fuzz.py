"""What comes in from outside, at random: it is taken, or refused with an error of ours in one sentence."""

from __future__ import annotations

import copy
import io
import json
import runpy
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from ray import tune
from safetensors.torch import save_file

from analysis.experiment import OpenedExperiment
from analysis.report import gather, render_markdown
from benchmarks.made_up_experiment import make_experiment
from maskpro.errors import MaskproError
from maskpro.initial_masks import parse_initial_mask
from maskpro.mask_file import MaskFile, _description_checksum, load_mask_file, save_mask_file
from maskpro.pattern import NMPattern, parse_layout
from maskpro.schedule.history import History
from maskpro.schedule.trial_table import tabulate_front, tabulate_trials
from maskpro.search_options import SearchOptions
from maskpro.trainer_config import HYPERPARAMETERS
from maskpro.tuning.command import read_experiment
from maskpro.tuning.space import _OPTIONAL, FORMAT, load_space

# Its advice on strategies depends on what happened to be drawn.
pytestmark = pytest.mark.filterwarnings("ignore::hypothesis.errors.HypothesisDeprecationWarning")
EXAMPLES, FULL_EXAMPLES = 100, 100_000
# Files of results.
RECORDS = 5
# Hypothesis remembers all examples of a part.
PART = 10_000


def fuzz(full: bool, strategy: SearchStrategy[Any], read: Callable[[Any], object], *, share: int = 1) -> None:
    """Read many examples, the same ones in every run; `share` kinds of files share them."""
    for number in range(FULL_EXAMPLES // PART // share if full else 1):

        @seed(number)
        @settings(
            max_examples=PART if full else EXAMPLES // share,
            deadline=None,
            database=None,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def once(example: Any) -> None:
            with suppress(MaskproError):
                read(example)

        once()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)


@st.composite
def changed(draw: DrawFn, value: Any, most: int = 3) -> Any:
    """The value with some of what it holds replaced, removed, put elsewhere or added."""
    whole = [copy.deepcopy(value)]
    for _ in range(draw(st.integers(1, most))):
        place, key = whole, 0
        while isinstance(place[key], dict | list) and place[key] and draw(st.integers(0, 4)):
            place = place[key]
            key = draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
        what = draw(st.sampled_from(["replace", "replace", "remove", "add"]))
        if what == "remove" and place is not whole:
            del place[key]
        elif what == "add" and isinstance(place[key], dict):
            place[key][draw(st.text(max_size=4))] = draw(JSON)
        else:
            place[key] = draw(JSON)
    return whole[0]


@st.composite
def damaged(draw: DrawFn, content: bytes) -> bytes:
    """Bytes of which some are others, are gone, are there twice, or are cut off."""
    now = bytearray(content)
    for _ in range(draw(st.integers(1, 3))):
        start = draw(st.integers(0, len(now)))
        length = draw(st.sampled_from([0, 1, 1, 1, 2, 8, 100]))
        now[start : start + length] = draw(st.binary(max_size=4) | st.just(bytes(now[start : start + 50])))
    return bytes(now[: draw(st.integers(0, len(now)))]) if draw(st.integers(0, 9)) == 0 else bytes(now)


def test_patterns(full):
    part = st.text("0123456789", max_size=4) | st.text(max_size=3)
    texts = st.text(max_size=10) | st.tuples(part, st.sampled_from([":", "\uff1a", "-", " : "]), part).map("".join)

    def read(text: str) -> None:
        for parse in (NMPattern.parse, parse_layout, parse_initial_mask):
            with suppress(MaskproError):
                parse(text)

    fuzz(full, texts, read)


NAMES = (*HYPERPARAMETERS, *FORMAT)
NUMBERS = st.integers(-2, 100) | st.floats() | st.integers()
# Also values that no JSON has: a space file is code.
VALUES = (
    JSON | NUMBERS | st.sampled_from(["2:4", "channel", "magnitude", "gumbel_softmax", "asha", object(), {1}, b"x", 1j])
)


@st.composite
def domains(draw: DrawFn) -> Any:
    low, high = draw(NUMBERS), draw(NUMBERS)
    kind = draw(st.sampled_from(["uniform", "loguniform", "quniform", "randint", "lograndint", "choice", "choice"]))
    if kind == "choice":
        return tune.choice(draw(st.lists(VALUES, max_size=3)))
    arguments = (low, high, draw(NUMBERS)) if kind == "quniform" else (low, high)
    try:
        return getattr(tune, kind)(*arguments)
    except (ArithmeticError, AssertionError, TypeError, ValueError):
        return None  # Ray refuses it, and so the user's own file can't be run


PARAM_SPACE = st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=3), VALUES | domains(), max_size=4)
SPACES = st.fixed_dictionaries(
    {
        "param_space": PARAM_SPACE.map(lambda space: {"lr": tune.uniform(0.5, 4.0)} | space) | VALUES,
        "seed_points": st.lists(st.fixed_dictionaries({"lr": NUMBERS}) | VALUES, max_size=3) | VALUES,
    },
    optional={name: VALUES | st.just(default) for name, default in _OPTIONAL.items()},
)


def test_values_of_a_space_file(full, tmp_path, monkeypatch):
    path = tmp_path / "space.py"
    path.write_text("")

    def read(values: dict[str, Any]) -> None:
        monkeypatch.setattr(runpy, "run_path", lambda name: values)
        load_space(path).describe()

    fuzz(full, SPACES, read)


def mask_file(path: Path) -> None:
    masks = {"down.conv": torch.tensor([1, 1, 0, 0] * 6).bool().view(2, 12), "up": torch.ones(1, 4).bool()}
    masks["up"][0, :2] = False
    pattern = NMPattern.parse("2:4")
    content = MaskFile(pattern=pattern, layout="channel", base_hash="0" * 64, masks=masks, provenance={"lr": 1.0})
    save_mask_file(path, content)


def test_bytes_of_a_mask_file(full, tmp_path):
    path = tmp_path / "masks.safetensors"
    mask_file(path)
    whole = path.read_bytes()

    def read(content: bytes) -> None:
        path.write_bytes(content)
        load_mask_file(path)

    fuzz(full, damaged(whole) | st.binary(max_size=200), read)


@st.composite
def described_masks(draw: DrawFn) -> tuple[dict[str, str], dict[str, torch.Tensor]]:
    """Fields of a header whose checksum is right, and tensors."""
    shapes = draw(changed({"down.conv": [2, 12], "up": [1, 4]}))
    fields: dict[str, str] = {
        "format": "maskpro-mask-2",
        "pattern": draw(st.sampled_from(["2:4", "1:4", "4:8", "0:0"]) | st.text(max_size=4)),
        "layout": draw(st.sampled_from(["channel", "flattened"]) | st.text(max_size=3)),
        "base_hash": draw(st.text(max_size=4)),
        "shapes": json.dumps(shapes),
        "checksums": draw(st.sampled_from(["{}", "[]", "0"])),
        "provenance": draw(JSON.map(json.dumps) | st.text(max_size=3)),
    }
    for name in draw(st.lists(st.sampled_from(sorted(fields)), max_size=2)):
        fields.pop(name, None)
    fields = {name: text.encode("utf-8", "replace").decode() for name, text in fields.items()}
    names = st.sampled_from(["down.conv", "up"]) | st.text("ab./_", max_size=4)
    kinds = st.sampled_from([torch.uint8, torch.int32, torch.bool])
    tensors = draw(st.dictionaries(names, st.builds(torch.ones, st.integers(0, 4), dtype=kinds), max_size=3))
    return fields, tensors


def test_header_fields_of_a_mask_file(full, tmp_path):
    path = tmp_path / "masks.safetensors"

    def read(content: tuple[dict[str, str], dict[str, torch.Tensor]]) -> None:
        fields, tensors = content
        save_file(tensors, path, metadata={**fields, "checksum": _description_checksum(fields)})
        load_mask_file(path)

    fuzz(full, described_masks(), read)


@pytest.fixture(scope="module")
def experiment(tmp_path_factory):
    return make_experiment(tmp_path_factory.mktemp("results") / "made_up", trials=4, num_dense=True)


def use_history(history: History) -> None:
    """All that is read off a history without the search's own folder."""
    tabulate_trials({"lr": None}, history.searched).to_csv(io.StringIO())
    tabulate_front(history.searched)
    for record in history.trials.values():
        _ = record.status, record.trained, record.failure, record.seed_point, record.needed_parts(may_go_on=True)


def test_lines_of_a_history(full, experiment, tmp_path):
    path = tmp_path / "history.jsonl"
    lines = (experiment / "history.jsonl").read_bytes().splitlines(keepends=True)
    kinds = {json.loads(line)["event"]: number for number, line in enumerate(lines)}
    numbers = st.sampled_from(sorted(kinds.values())) | st.integers(0, len(lines) - 1)

    @st.composite
    def with_a_changed_line(draw: DrawFn) -> bytes:
        number = draw(numbers)
        line = json.dumps(draw(changed(json.loads(lines[number])))).encode() + b"\n"
        place = draw(st.integers(number, len(lines)))
        return b"".join([*lines[:number], *([] if place > number else [line]), *lines[number + 1 : place], line])

    def read(content: bytes) -> None:
        path.write_bytes(content)
        use_history(History(path))

    fuzz(full, with_a_changed_line() | damaged(b"".join(lines)), read)


def use_experiment(folder: Path) -> None:
    opened = OpenedExperiment(folder)
    for name in ("trials", "curves", "pareto_front", "searched_parameters", "rungs", "evaluation", "timesteps"):
        getattr(opened, name)
    for name in ("best_trial", "promoted", "evaluated_trial", "best_config", "layers", "dense_curve", "is_going_on"):
        getattr(opened, name)
    render_markdown(gather(opened))


@pytest.mark.parametrize("name", ["experiment.json", "final_evaluation.json", "best/config.json"])
def test_records_of_an_experiment(full, experiment, name):
    path = experiment / name
    whole = path.read_bytes()

    def read(content: Any) -> None:
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        use_experiment(experiment)

    try:
        fuzz(full, changed(json.loads(whole)) | damaged(whole), read, share=RECORDS)
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("name", ["best/layers.csv", "best/dense_curve.csv"])
def test_tables_of_the_best_mask(full, experiment, name):
    path = experiment / name
    whole = path.read_bytes() if path.exists() else b"num_dense,layers\n0,a b\n1,c\n"

    def read(content: bytes) -> None:
        path.write_bytes(content)
        use_experiment(experiment)

    try:
        fuzz(full, damaged(whole), read, share=RECORDS)
    finally:
        path.write_bytes(whole)


def test_records_that_a_search_is_resumed_from(full, tmp_path):
    whole = json.loads((Path(__file__).parents[1] / "records" / "experiment_format_5.json").read_text())

    def read(content: Any) -> None:
        (tmp_path / "experiment.json").write_text(json.dumps(content))
        described = read_experiment(tmp_path, "resume")
        SearchOptions.of_record(described["options"], space=tmp_path, results_dir=tmp_path, experiment="x")

    fuzz(full, changed(whole), read)
