"""Text of a data set by its name, as `datasets` finds and streams it. Local folders stand for the hub."""

import sys
from pathlib import Path

import pytest
import torch
from shared_fixtures import CPU

from maskpro import text_datasets
from maskpro.errors import MaskproError
from maskpro.search_options import SearchOptions
from maskpro.text_datasets import read_dataset
from maskpro.workloads import open_workload

pytestmark = pytest.mark.slow  # importing datasets takes seconds


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A data set that `datasets` has written: two splits, a column of numbers and two of texts."""
    from datasets import Dataset, disable_progress_bars

    disable_progress_bars()
    folder = tmp_path_factory.mktemp("set")
    rows = [f"Line {number} of a text that is long enough." for number in range(400)]
    for split, texts in (("train", rows), ("test", ["a test\n", ""])):
        Dataset.from_dict({"id": list(range(len(texts))), "title": ["t"] * len(texts), "text": texts}).to_json(
            folder / f"{split}.jsonl"
        )
    return folder


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def test_split_and_column_are_taken_as_named_or_guessed_aloud(folder):
    text, notes = read_dataset(f"{folder}:default:test", "title")
    assert (text, notes) == ("t\nt\n", ())
    text, notes = read_dataset(f"{folder}:default:test")
    assert text == "a test\n\n"
    assert notes == (f"data set {folder}:default:test: the text is that of column text",)
    text, notes = read_dataset(str(folder))
    assert text.splitlines()[399] == "Line 399 of a text that is long enough."
    assert notes[0] == f"data set {folder}: split train of train, test is read"


def test_no_more_is_read_than_is_kept(folder, monkeypatch):
    taken = []

    def count(rows, column):
        return text(((taken.append(0), row)[1] for row in rows), column)

    text = text_datasets._text
    monkeypatch.setattr(text_datasets, "_text", count)
    monkeypatch.setattr(text_datasets, "MOST_CHARACTERS", 100)
    found, notes = read_dataset(f"{folder}:default:train", "text")
    assert len(found) == 100
    assert len(taken) <= 4
    assert notes == (f"data set {folder}:default:train: the first 100 characters of split train are read, and no more",)


def test_a_language_model_learns_from_a_data_set_that_a_record_names_as_it_was_given(folder):
    data, said = Path(f"{folder}:default"), []
    workload = open_workload("causal_lm", data=data, options={"sequence_length": 16}, say=said.append)
    assert workload.data_source == str(data)
    assert len(said) == 2
    batch = workload.training_objective(seed=0, device=CPU).batch(torch.arange(2))
    assert b"Line" in bytes(batch.flatten().tolist()) + bytes(workload.tokens.train[:99].tolist())
    space = Path("search_spaces/causal_lm.py")
    assert (
        SearchOptions(space=space, experiment="x", data=Path("some/set:default")).describe()["data"] == "some/set:default"
    )
    assert SearchOptions(space=space, experiment="x", data=Path("search_spaces")).describe()["data"] == str(
        Path("search_spaces").absolute()
    )


@pytest.mark.parametrize(
    ("more", "column", "message"),
    [
        (":no", None, r"can't be loaded as a data set \(ValueError: BuilderConfig 'no' not found"),
        (":default:validation", None, r"has no split validation; allowed: train, test$"),
        (":default:test", "no", r"^text_column is no with data set .*; allowed: title, text$"),
        (":default:test", "id", r"^text_column is id with data set .*; allowed: title, text$"),
        ("::", None, r"^data is .*::; allowed: a text file, a folder of text, or NAME\[:CONFIGURATION\[:SPLIT\]\]$"),
    ],
)
def test_what_a_data_set_lacks_is_said(folder, more, column, message):
    with pytest.raises(MaskproError, match=message):
        read_dataset(f"{folder}{more}", column)


def test_a_data_set_that_is_not_there_and_a_missing_package_are_named(monkeypatch):
    with pytest.raises(
        MaskproError, match=r"^data is no/set, which is no file and no folder here, and can't be loaded as a"
    ):
        open_workload("causal_lm", data=Path("no/set"))
    with pytest.raises(MaskproError, match=r"^text_column is text with the embedded text; allowed: with a data set's name"):
        open_workload("causal_lm", options={"text_column": "text"})
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        MaskproError, match=r"for a data set's name package datasets is missing; allowed: after pip install"
    ):
        read_dataset("wikitext:wikitext-2-raw-v1")
