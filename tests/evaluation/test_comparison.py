"""The evaluation of networks: its protocol, and that an interruption leaves no trace in its figures."""

import copy
import hashlib
import json
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

from maskpro.errors import MaskproError
from maskpro.evaluation import comparison
from maskpro.evaluation.comparison import evaluate_models, with_distances
from maskpro.evaluation.distances import FeatureStatistics
from maskpro.evaluation.protocol import protocol
from maskpro.evaluation.sampling import SamplingPlan
from maskpro.files import read_json
from maskpro.masked_model import model_hash
from maskpro.metrics import masked_copy
from maskpro.pattern import NMPattern
from maskpro.pipeline.masks import magnitude_mask_file
from maskpro.workload_evaluation import make_parts
from maskpro.workloads.judging import reference_statistics

CPU = torch.device("cpu")


@pytest.fixture
def workload(digits, monkeypatch):
    """The digits, few and fast: 22 images a model, in batches of 4 and chunks of 8."""
    monkeypatch.setattr(comparison, "SAMPLING_BATCH", 4)
    monkeypatch.setattr("maskpro.evaluation.figures._CHUNK", 8)
    budgets = replace(digits.budgets, validation_samples=64, test_samples=64, num_generated=22, sampling_steps=3)
    return replace(digits, model=copy.deepcopy(digits.model), budgets=budgets)


@pytest.fixture
def models(workload):
    content = magnitude_mask_file(workload, pattern=NMPattern(2, 4), layout="channel")
    return {
        "dense": workload.model,
        "initial": masked_copy(workload.model, content.masks, content.pattern, content.layout),
    }


def evaluated(workload, models, tmp_path, **settings):
    said = []
    arguments = {"device": CPU, "folder": tmp_path / "out", "cache": tmp_path / "cache", "say": said.append, **settings}
    return evaluate_models(workload, models, **arguments), said


def interrupt(model, *, after):
    """Let a network be killed at a forward pass."""
    calls = iter(range(after))

    def count(*_):
        if next(calls, None) is None:
            raise KeyboardInterrupt

    return model.register_forward_pre_hook(count)


def forbid(model):
    return interrupt(model, after=0)


@pytest.mark.slow
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_an_interrupted_evaluation_goes_on_to_the_same_figures(workload, models, tmp_path, sampler):
    settings = {"sampler": sampler, "sampling_steps": 3}
    whole, _ = evaluated(workload, models, tmp_path / "whole", **settings)
    # Killed in the third chunk of the second model: 2 chunks of 2 batches of 3 steps, and one more batch, are made.
    hook = interrupt(models["initial"], after=2 * 2 * 3 + 3 + 1)
    with pytest.raises(KeyboardInterrupt):
        evaluated(workload, models, tmp_path, **settings)
    hook.remove()
    kept = sorted(path.name for path in tmp_path.glob("cache/*/images/*"))
    assert kept == ["000000-000008.safetensors", "000008-000016.safetensors"]
    resumed, said = evaluated(workload, models, tmp_path, **settings)
    assert resumed == whole
    assert said[-3].endswith("(from the cache)")
    assert said[-2] == "sampling initial: 16 of 22 images are in the cache"
    for name in models:
        grids = [folder / "out" / f"samples_{name}.png" for folder in (tmp_path, tmp_path / "whole")]
        assert grids[0].read_bytes() == grids[1].read_bytes()


@pytest.mark.slow
def test_a_second_evaluation_takes_everything_from_the_cache(workload, models, tmp_path):
    first, _ = evaluated(workload, models, tmp_path)
    assert list(tmp_path.glob("cache/*/images")) == [], "images are kept only until the figures are known"
    for model in models.values():
        forbid(model)
    again, said = evaluated(workload, models, tmp_path, folder=tmp_path / "elsewhere")
    assert again == first
    assert [text.endswith("(from the cache)") for text in said[-2:]] == [True, True]
    assert (tmp_path / "elsewhere" / "samples_initial.png").is_file()


@pytest.mark.slow
def test_figures_are_those_of_one_set_of_weights_and_one_protocol(workload, models, tmp_path):
    report, _ = evaluated(workload, models, tmp_path)
    assert model_hash(models["dense"]) != model_hash(models["initial"])
    assert report["models"]["dense"] != report["models"]["initial"]
    renamed = {"trial_7": models["initial"]}
    found = evaluated(workload, renamed, tmp_path)[0]["models"]["trial_7"]
    beside = {"fidelity": 0.0, "fidelity_error": 0.0, "recovery_error": 0.0, "loss_improvement_error": 0.0}
    assert found | beside == report["models"]["initial"], "fidelity is known beside an initial mask alone"
    longer, said = evaluated(workload, renamed, tmp_path, sampling_steps=4)
    assert not said[-1].endswith("(from the cache)")
    assert longer["models"]["trial_7"]["frechet_distance"] != report["models"]["initial"]["frechet_distance"]
    search = replace(workload, budgets=replace(workload.budgets, max_samples=64))
    _, said = evaluated(search, renamed, tmp_path)
    assert said[-1].endswith("(from the cache)"), "the search's budget has no part in the figures of a given mask"


@pytest.mark.slow
def test_statistics_of_the_real_images_are_kept_for_other_experiments(workload, models, tmp_path, monkeypatch):
    settings = {"cache": None, "reference_cache": tmp_path / "reference"}
    models = {"initial": models["initial"]}
    first, _ = evaluated(workload, models, tmp_path, **settings)
    (path,) = (tmp_path / "reference").iterdir()
    whole, seen = path.read_bytes(), []
    add = FeatureStatistics.add
    monkeypatch.setattr(FeatureStatistics, "add", lambda self, part: seen.append(len(part)) or add(self, part))
    assert evaluated(workload, models, tmp_path, **settings)[0] == first
    assert sum(seen) == 22, "generated images alone"
    path.write_bytes(whole[:100])
    assert evaluated(workload, models, tmp_path, **settings)[0] == first
    assert path.read_bytes() == whole
    smaller = replace(workload, images=replace(workload.images, train=workload.images.train[:600]))
    other, _ = evaluated(smaller, models, tmp_path, **settings)
    assert other["models"]["initial"]["frechet_distance"] != first["models"]["initial"]["frechet_distance"]


@pytest.mark.slow
@pytest.mark.parametrize("broken", ["figures.json", "samples.png"])
@pytest.mark.parametrize("keep", [0, 0.5])
def test_broken_figures_are_made_again(workload, models, tmp_path, broken, keep):
    models = {"initial": models["initial"]}
    first, _ = evaluated(workload, models, tmp_path)
    (path,) = tmp_path.glob(f"cache/*/{broken}")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * keep)])
    again, said = evaluated(workload, models, tmp_path)
    assert again == first
    assert not said[-1].endswith("(from the cache)")
    assert path.read_bytes() == whole


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["truncated", "empty", "of another shape"])
def test_broken_chunks_are_made_again(workload, models, tmp_path, damage):
    models = {"initial": models["initial"]}
    whole, _ = evaluated(workload, models, tmp_path / "whole")
    hook = interrupt(models["initial"], after=2 * 2 * 3)
    with pytest.raises(KeyboardInterrupt):
        evaluated(workload, models, tmp_path)
    hook.remove()
    first, second = sorted(tmp_path.glob("cache/*/images/*"))
    kept = first.read_bytes()
    if damage == "of another shape":
        comparison.ModelCache(tmp_path, models["initial"], {}).keep_images(range(1), torch.zeros(1, 1, 8, 8).byte())
        (other,) = tmp_path.glob("*/images/*")
        other.replace(first)
    else:
        first.write_bytes(kept[: len(kept) - 1 if damage == "truncated" else 0])
    again, said = evaluated(workload, models, tmp_path)
    assert again == whole
    assert said[-2] == "sampling initial: 8 of 22 images are in the cache"
    assert not second.exists()


def test_saved_images_are_complete_even_where_the_figures_are_known(workload, models, tmp_path):
    models = {"dense": models["dense"]}
    first, _ = evaluated(workload, models, tmp_path)
    again, _ = evaluated(workload, models, tmp_path, save_images=True)
    assert again == first
    assert len(list((tmp_path / "out" / "images" / "dense").iterdir())) == 22
    assert list(tmp_path.glob("cache/*/images")) == []


@pytest.mark.slow
def test_without_a_cache_the_figures_are_the_same_and_nothing_is_kept(workload, models, tmp_path):
    models = {**models, "learned": models["initial"]}
    report = with_distances(evaluate_models(workload, models, device=CPU, folder=tmp_path / "out", cache=None), "learned")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {f"samples_{name}.png" for name in models}
    assert list(tmp_path.iterdir()) == [tmp_path / "out"]
    cached, _ = evaluated(workload, models, tmp_path)
    assert report == with_distances(cached, "learned")
    assert report["recovery"] == 0


def test_recovery_is_that_of_the_named_network(workload):
    losses = {"dense": 1.0, "initial": 3.0, "learned": 2.5, "trial_7": 1.5}
    report = {"protocol": {}, "models": {name: {"test_loss": loss} for name, loss in losses.items()}}
    undefined = dict.fromkeys(("fidelity", "fidelity_error", "recovery_error", "loss_improvement_error"))
    beside = undefined | {"distance_to_dense": dict.fromkeys(("frechet_distance", "kernel_distance"))}
    assert with_distances(report, "trial_7") == {**report, **beside, "recovery": 0.75, "loss_improvement": 0.5}
    assert with_distances(report, "learned")["recovery"] == 0.25
    assert report.keys() == {"protocol", "models"}
    with pytest.raises(MaskproError, match="models lacks 'trial_8', which recovery needs; there are: dense, initial"):
        with_distances(report, "trial_8")


def test_the_protocol_names_all_that_figures_depend_on(workload, models, tmp_path):
    record = evaluated(workload, {"dense": models["dense"]}, tmp_path)[0]["protocol"]
    expected = {
        "model_ema": "EMA weights",
        "num_generated": 22,
        "sampler": "ddim",
        "sampling_steps": 3,
        "timestep_spacing": "trailing",
        "first_timestep": 999,
        "num_timesteps": 3,
        "eta": 0.0,
        "frechet_features": "digits classifier, penultimate layer",
        "frechet_resizing": "none",
        "num_frechet_features": 64,
        "frechet_reference_sha256": None,
        "num_kernel_precision_recall": 22,
        "kernel_precision_recall_seed": 2**32 + 5,
        "sampling_precision": "float32",
        "sampling_compiled": False,
        "frechet_reference": "training and validation images",
        "num_frechet_reference": 1497,
        "device": "cpu",
        "dtype": "float32",
    }
    assert {name: record[name] for name in expected} == expected
    assert record["versions"]["torch"] == torch.__version__
    assert record["noise_schedule"]["variance_type"] == "fixed_small"
    assert json.loads(json.dumps(record)) == record
    (path,) = tmp_path.glob("cache/*/figures.json")
    assert read_json(path)["protocol"].items() <= record.items()


def test_other_images_or_another_noise_schedule_are_another_protocol(workload):
    def record(changed):
        plan = SamplingPlan(scheduler=changed.scheduler, shape=(1, 8, 8), steps=3, seed=0, batch_size=4)
        return protocol(changed, None, CPU, plan=plan)

    images = workload.images
    altered = images.train.clone()
    altered[0, 0, 0, 0] += 1
    for changed in ({"images": replace(images, train=altered)}, {"scheduler": DDPMScheduler(clip_sample=False)}):
        assert record(replace(workload, **changed)) != record(workload)


def test_ddpm_takes_every_step_of_the_noise_schedule_unless_told(workload, models, tmp_path):
    workload = replace(workload, scheduler=DDPMScheduler(num_train_timesteps=6))
    dense = {"dense": models["dense"]}
    record = evaluated(workload, dense, tmp_path, sampler="ddpm", compute_frechet=False)[0]["protocol"]
    assert (record["sampler"], record["sampling_steps"], record["eta"]) == ("ddpm", 6, None)
    with pytest.raises(MaskproError, match="sampling_steps is 7; allowed: 1 to 6"):
        evaluated(workload, dense, tmp_path, sampling_steps=7)


@pytest.mark.slow
def test_all_distances_are_of_the_same_images_and_kept_together(workload, models, tmp_path):
    report, said = evaluated(workload, models, tmp_path)
    for figures in report["models"].values():
        assert figures["frechet_distance"] > 0
        assert figures["kernel_distance_error"] > 0
        assert 0 <= figures["precision"] <= 1
        assert 0 <= figures["recall"] <= 1
    assert "kernel distance" in said[-1]
    assert "recall" in said[-1]
    without, said = evaluated(workload, models, tmp_path, compute_frechet=False)
    names = ("frechet_distance", "kernel_distance", "kernel_distance_error", "precision", "recall")
    assert [without["models"]["dense"][name] for name in names] == [None] * 5
    assert without["protocol"]["num_kernel_precision_recall"] is None
    assert without["warnings"] == []
    assert "distance" not in said[-1]


def test_images_that_are_neither_judged_nor_saved_are_made_for_a_picture_only(workload, models, tmp_path, monkeypatch):
    for module in ("comparison", "figures"):
        monkeypatch.setattr(f"maskpro.evaluation.{module}.GRID_IMAGES", 6)
    made = []

    def make(network, part, parts):
        made.extend(parts)
        return make_parts(network, part, parts)

    dense = {"dense": models["dense"]}
    _, said = evaluated(workload, dense, tmp_path, compute_frechet=False, make=make)
    assert made == [range(6)]
    assert said[0].startswith("6 images of each network, sampled in float32")
    made.clear()
    _, said = evaluated(workload, dense, tmp_path, compute_frechet=False, save_images=True, make=make)
    assert sum(map(len, made)) == 22
    assert said[0].startswith("22 images of each network")


@pytest.mark.parametrize("count", [2, 22, 64])
def test_a_distance_of_too_few_images_has_a_warning_beside_it(workload, models, tmp_path, count):
    few = replace(workload, budgets=replace(workload.budgets, num_generated=count))
    report, said = evaluated(few, {"dense": models["dense"]}, tmp_path)
    assert len(report["warnings"]) == 2
    assert f"{count} generated images are too few for 64 features: their covariance is singular" in report["warnings"][0]
    assert [f"warning: {text}" for text in report["warnings"]] == said[1:3]
    assert "Frechet distance" in said[-1]
    assert ", of too few images: see the warning (" in said[-1]
    again, said = evaluated(few, {"dense": models["dense"]}, tmp_path)
    assert again == report, "also from the cache"
    assert with_distances({**report, "models": dict.fromkeys(("dense", "initial", "x"), report["models"]["dense"])}, "x")[
        "warnings"
    ]


@pytest.mark.slow
def test_reference_statistics_of_a_file_take_the_place_of_the_real_images(workload, models, tmp_path):
    dense = {"dense": models["dense"]}
    own, _ = evaluated(workload, dense, tmp_path)
    path = tmp_path / "digits.npz"
    reference_statistics(workload, path, device=CPU)
    report, said = evaluated(workload, dense, tmp_path, reference_statistics=path)
    figures = report["models"]["dense"]
    assert figures["frechet_distance"] == pytest.approx(own["models"]["dense"]["frechet_distance"], rel=1e-9)
    assert [figures[name] for name in ("kernel_distance", "precision", "recall")] == [None, None, None]
    assert any("kernel distance, precision and recall are left out" in text for text in said)
    record = report["protocol"]
    assert record["frechet_reference"] == "file digits.npz"
    assert record["frechet_reference_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["num_frechet_reference"] is None
    with np.load(path, allow_pickle=False) as archive:
        moved = {"mu": archive["mu"] + 1, "sigma": archive["sigma"]}
    np.savez(path, **moved)
    other, _ = evaluated(workload, dense, tmp_path, reference_statistics=path)
    assert other["models"]["dense"]["frechet_distance"] > figures["frechet_distance"] + 10, "not from the cache"


def test_other_features_are_another_protocol_and_no_fid(workload, models, tmp_path):
    class Pixels(torch.nn.Module):
        def forward(self, images):
            return images.flatten(1).float()[:, :10]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(Pixels(), torch.zeros(2, 1, 8, 8, dtype=torch.uint8)), tmp_path / "pixels.pt")
    dense = {"dense": models["dense"]}
    own, _ = evaluated(workload, dense, tmp_path)
    report, said = evaluated(replace(workload, features=str(tmp_path / "pixels.pt")), dense, tmp_path)
    assert report["models"]["dense"]["frechet_distance"] != own["models"]["dense"]["frechet_distance"]
    assert report["protocol"]["frechet_features"] == "pixels.pt (TorchScript)"
    assert report["protocol"]["num_frechet_features"] == 10
    assert len(report["protocol"]["frechet_features_sha256"]) == 64
    text = json.dumps(report) + " ".join(said)
    assert "FID" not in text
    assert "fid" not in text.replace("torch-fidelity", "")
