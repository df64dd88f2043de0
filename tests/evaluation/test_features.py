"""What turns images into features: names, files, and what is refused."""

import hashlib
import io
import json
import math
import urllib.request
import warnings
import zipfile
from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

from maskpro.errors import MaskproError
from maskpro.evaluation.comparison import evaluate_models
from maskpro.evaluation.distances import FeatureStatistics, frechet_distance
from maskpro.evaluation.features import FeatureExtractor, open_features
from maskpro.workloads import open_workload

CPU = torch.device("cpu")
COLOUR = (3, 16, 16)


def statistics(features):
    parts = FeatureStatistics()
    parts.add(features)
    return parts.result()


class Program(nn.Module):
    """Keeps the contract: uint8 [B, 3, H, W] to [B, 8]."""

    def __init__(self, channels=3):
        super().__init__()
        self.convolution = nn.Conv2d(channels, 8, 3)
        with torch.no_grad():
            self.convolution.weight.copy_(
                torch.linspace(-1, 1, self.convolution.weight.numel()).view_as(self.convolution.weight)
            )
            self.convolution.bias.zero_()

    def forward(self, images):
        return self.convolution(images.float() / 255).relu().mean(dim=(2, 3))


class AnotherRank(Program):
    def forward(self, images):
        return self.convolution(images.float())


class AnotherCount(Program):
    """As many features as images."""

    def forward(self, images):
        flat = super().forward(images)
        return flat @ flat.t()


class OneRow(Program):
    def forward(self, images):
        return super().forward(images).mean(dim=0, keepdim=True)


class NotFinite(Program):
    def forward(self, images):
        return super().forward(images) / 0


class WholeNumbers(Program):
    def forward(self, images):
        return super().forward(images).long()


class TwoTensors(Program):
    def forward(self, images):
        features = super().forward(images)
        return features, features


class OfTheBatch(Program):
    """As batch normalisation in training mode."""

    def forward(self, images):
        features = super().forward(images)
        return features - features.mean(dim=0)


def script(program, path, shape=COLOUR):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(program.eval(), torch.ones(2, *shape, dtype=torch.uint8), check_trace=False), path)
    return path


def export(program, path, shape=COLOUR):
    path.write_bytes(exported(type(program), program.convolution.in_channels, shape))
    return path


@cache
def exported(kind, channels, shape):
    """The file of torch.export, which takes a second to make; the programs of a kind are all alike."""
    images, written = torch.ones(2, *shape, dtype=torch.uint8), io.BytesIO()
    dynamic = ({0: torch.export.Dim("batch")},)
    torch.export.save(torch.export.export(kind(channels).eval(), (images,), dynamic_shapes=dynamic), written)
    return written.getvalue()


def opened(path, shape=COLOUR):
    return open_features(str(path), device=CPU, shape=shape)


@pytest.mark.parametrize("write", [script, export])
def test_a_program_of_a_file_gives_its_features(write, tmp_path, generator):
    path = write(Program(), tmp_path / "program.bin")
    extractor = opened(path)
    images = torch.randint(256, (300, *COLOUR), dtype=torch.uint8, generator=generator)
    torch.testing.assert_close(extractor(images), Program()(images).detach().double())
    kind = {script: "TorchScript", export: "torch.export"}[write]
    assert (extractor.name, extractor.width) == (f"program.bin ({kind})", 8)
    assert extractor.weights_hash == hashlib.sha256(path.read_bytes()).hexdigest()
    assert "Inception" not in extractor.name


@pytest.mark.parametrize("write", [script, export])
@pytest.mark.parametrize(
    ("program", "problem"),
    [
        (AnotherRank, r"returns \[2, 8, 14, 14\] for 2 images; allowed: \[2, F\]"),
        (AnotherCount, r"returns \[3, 3\] for 3 images; allowed: \[3, 2\], as many features for every image"),
        (OneRow, r"returns \[1, 8\] for 2 images"),
        (NotFinite, "values that are not finite"),
        (WholeNumbers, r"returns torch.int64 .*; allowed: floating-point features"),
        (TwoTensors, r"returns a (tuple|list); allowed: one tensor"),
        (OfTheBatch, "gives an image other features in another batch; allowed: a program in evaluation mode"),
    ],
)
def test_a_program_that_breaks_the_contract_gives_one_sentence(write, program, problem, tmp_path):
    path = write(program(), tmp_path / "program.pt")
    with pytest.raises(MaskproError, match=problem) as caught:
        opened(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("write", [script, export])
def test_a_program_for_other_channels_is_shown_grey_images_as_rgb_and_else_refused(write, tmp_path, generator):
    colour = opened(write(Program(), tmp_path / "colour.pt"), shape=(1, 16, 16))
    grey = torch.randint(256, (5, 1, 16, 16), dtype=torch.uint8, generator=generator)
    torch.testing.assert_close(colour(grey), Program()(grey.expand(-1, 3, -1, -1)).detach().double())
    assert colour.resizing.startswith("grey images as RGB")
    path = write(Program(channels=1), tmp_path / "grey.pt", shape=(1, 16, 16))
    with pytest.raises(MaskproError, match=r"grey.pt .* fails on uint8 images \[B, 3, 16, 16\] \(.*\); allowed") as caught:
        opened(path)
    assert "\n" not in str(caught.value)


def test_a_count_that_changes_later_is_noticed():
    widths = iter([4, 5])
    extractor = FeatureExtractor(
        name="x",
        weights_hash="",
        resizing="",
        compute=lambda images: torch.ones(len(images), next(widths)),
        batch_size=2,
        width=4,
    )
    with pytest.raises(MaskproError, match=r"features x returns \[2, 5\] for 2 images; allowed: \[2, 4\]"):
        extractor(torch.zeros(4, 1, 2, 2, dtype=torch.uint8))


class Payload:
    """Would run code where an unsafe loader reads it."""

    def __reduce__(self):
        return (pytest.fail, ("a pickle was executed",))


def _zip_of_text(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.txt", "a")


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("no program"),
        lambda path: path.write_bytes(b""),
        lambda path: torch.save({"weight": torch.ones(2)}, path),
        lambda path: torch.save(Payload(), path),
        _zip_of_text,
    ],
    ids=["text", "empty", "weights", "pickle", "zip"],
)
def test_a_file_that_is_no_program_gives_one_sentence(write, tmp_path):
    write(tmp_path / "x.pt")
    with pytest.raises(MaskproError, match=r"x.pt is neither a TorchScript nor a torch.export file; allowed"):
        opened(tmp_path / "x.pt")


@pytest.mark.parametrize("write", [script, export])
def test_a_truncated_program_gives_one_sentence(write, tmp_path):
    path = write(Program(), tmp_path / "x.pt")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(MaskproError, match=r"features .*x.pt"):
        opened(path)


def test_a_name_that_is_none_and_a_folder_give_one_sentence(tmp_path):
    with pytest.raises(
        MaskproError, match=r"features is 'incepton' \(no such file\); allowed: digits-classifier, inception-v3"
    ):
        opened("incepton")
    with pytest.raises(MaskproError, match=r"\(Is a directory\); allowed"):
        opened(tmp_path)
    with pytest.raises(MaskproError, match=r"images of \(3, 16, 16\); allowed: images of \(1, 8, 8\)"):
        opened("digits-classifier")


def rewritten(path, change):
    """The zip file with its parts changed: `change` takes and gives name and bytes, or None."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as changed:
        for name in archive.namelist():
            for part in change(name, archive.read(name)):
                changed.writestr(*part)
    path.write_bytes(buffer.getvalue())


def pickled():
    buffer = io.BytesIO()
    torch.save(Payload(), buffer)
    return buffer.getvalue()


def _edit_json(ending, edit):
    def change(name, content):
        if name.endswith(ending):
            described = json.loads(content)
            edit(described)
            content = json.dumps(described).encode()
        return [(name, content)]

    return change


def _operator(described):
    described["graph_module"]["graph"]["nodes"][0]["target"] = "torch.os.system"


def _read_file(described):
    described["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"


def _expression(described):
    size = described["graph_module"]["graph"]["tensor_values"]["images"]["sizes"][0]
    size["as_expr"]["expr_str"] = "__import__('os').getpid()"


def _pickle_weight(described):
    next(iter(described["config"].values()))["use_pickle"] = True


CHANGES = {
    "operator": _edit_json("models/model.json", _operator),
    "operator that reads files": _edit_json("models/model.json", _read_file),
    "expression": _edit_json("models/model.json", _expression),
    "tensor": _edit_json("model_weights_config.json", _pickle_weight),
    "inputs": lambda name, content: [(name, pickled() if "sample_inputs" in name else content)],
    "part": lambda name, content: [
        (name, content),
        *([(name.replace("byteorder", "data/constants/model.pt"), pickled())] if name.endswith("byteorder") else []),
    ],
    "twice": lambda name, content: [
        (name, content),
        *([(name.replace("models/model", "models/MODEL"), content)] if name.endswith("model.json") else []),
    ],
}


@pytest.mark.parametrize("change", CHANGES)
def test_an_exported_program_with_code_of_its_author_is_not_loaded(change, tmp_path, monkeypatch):
    path = export(Program(), tmp_path / "x.pt2")
    rewritten(path, lambda name, content: [(name, content)])
    assert opened(path).width == 8, "rewritten without a change it loads"
    rewritten(path, CHANGES[change])
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("torch.export.load was reached"))
    with pytest.raises(MaskproError, match=r"x.pt2 is a torch.export file with .* which could run code of its author"):
        opened(path)


class Registered(FeatureExtractorBase):
    """As a plug-in registers one with torch-fidelity."""

    def __init__(self, name, features_list, **_):
        super().__init__(name, features_list)
        self.program = Program()

    def forward(self, images):
        return (self.program(images),)

    @staticmethod
    def get_provided_features_list():
        return ("tiny",)

    @staticmethod
    def get_default_feature_layer_for_metric(metric):
        return "tiny"


def test_what_torch_fidelity_has_registered_goes_by_its_name(monkeypatch, generator):
    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "tiny-net", Registered)
    extractor = opened("tiny-net")
    images = torch.randint(256, (5, *COLOUR), dtype=torch.uint8, generator=generator)
    torch.testing.assert_close(extractor(images), Program()(images).detach().double())
    assert (extractor.name, extractor.width) == ("tiny-net (torch-fidelity), tiny", 8)
    assert len(extractor.weights_hash) == 64


@pytest.mark.slow
@pytest.mark.parametrize("name", ["vgg16", "clip-vit-b-32", "dinov2-vit-s-14"])
def test_registered_features_without_a_network_give_one_sentence(name, tmp_path, monkeypatch):
    def offline(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("torch.hub.urlopen", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(MaskproError, match=rf"features {name}: its weights are not in {tmp_path}/hub and could") as caught:
        opened(name)
    assert "\n" not in str(caught.value)


def test_inception_weights_that_cannot_be_had_give_one_sentence(tmp_path):
    with pytest.raises(MaskproError, match=r"no file .*; allowed for --inception-weights"):
        open_features("inception-v3", device=CPU, shape=(3, 16, 16), inception_weights=tmp_path / "none.pth")
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    with pytest.raises(MaskproError, match=r"does not hold torch-fidelity's Inception weights"):
        open_features("inception-v3", device=CPU, shape=(3, 16, 16), inception_weights=tmp_path / "other.pth")


@pytest.fixture(scope="module")
def inception(tmp_path_factory):
    """Random weights in torch-fidelity's format, with the network that has them."""
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save({}, path)
    with pytest.MonkeyPatch.context() as patched, torch.random.fork_rng():
        torch.manual_seed(0)
        patched.setattr(FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = FeatureExtractorInceptionV3("x", ["2048"], feature_extractor_weights_path=str(path))
    torch.save(network.state_dict(), path)
    return path, network


@pytest.mark.slow
def test_the_inception_path_runs_with_weights_in_torch_fidelitys_format(inception, generator):
    """Random weights: the path from images to a number is tested, no FID is claimed."""
    path, network = inception
    extractor = open_features("inception-v3", device=CPU, shape=(3, 16, 16), inception_weights=path)
    images = torch.randint(256, (4, 3, 16, 16), dtype=torch.uint8, generator=generator)
    features = extractor(images)
    assert features.shape == (4, 2048)
    assert torch.equal(features, network(images)[0].double())
    assert extractor(images[:, :1]).shape == (4, 2048), "grey images are shown to it as RGB"
    with pytest.raises(MaskproError, match=r"images of 4 channels; allowed: 1 \(shown as RGB\) or 3"):
        open_features("inception-v3", device=CPU, shape=(4, 16, 16), inception_weights=path)
    assert frechet_distance(statistics(features), statistics(features)) == pytest.approx(0, abs=1e-2)


@pytest.mark.slow
def test_the_cifar10_workload_is_judged_by_inception_features(tmp_path, inception, model_folder, image_folder):
    path = inception[0]
    workload = open_workload("cifar10", model=str(model_folder), data=image_folder)
    images = workload.images
    images = replace(images, train=images.train[:4], validation=images.validation[:2], test=images.test[:2])
    budgets = replace(workload.budgets, validation_samples=2, test_samples=2, num_generated=3, sampling_steps=2)
    workload = replace(workload, images=images, budgets=budgets)
    models, settings = {"dense": workload.model}, {"device": CPU, "inception_weights": path}
    report = evaluate_models(workload, models, folder=tmp_path / "out", cache=tmp_path / "cache", **settings)
    found, record = report["models"]["dense"]["frechet_distance"], report["protocol"]
    assert math.isfinite(found)
    assert found > 0
    assert record["frechet_features_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert record["frechet_features"] == "Inception-v3 (torch-fidelity), 2048 features"
    assert record["num_frechet_reference"] == 6
    assert "299x299" in record["frechet_resizing"]


def test_truncated_inception_weights_give_one_sentence(tmp_path, inception):
    weights = inception[0].read_bytes()
    (tmp_path / "half.pth").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(MaskproError, match=r"half.pth does not hold torch-fidelity's Inception weights"):
        open_features("inception-v3", device=CPU, shape=(3, 16, 16), inception_weights=tmp_path / "half.pth")


def test_a_pickle_in_place_of_inception_weights_is_not_run(tmp_path):
    torch.save(Payload(), tmp_path / "evil.pth")
    with pytest.raises(MaskproError, match="does not hold torch-fidelity's Inception weights"):
        open_features("inception-v3", device=CPU, shape=(3, 16, 16), inception_weights=tmp_path / "evil.pth")
