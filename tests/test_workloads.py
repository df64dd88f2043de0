import json
import math

import pytest
import torch
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from shared_fixtures import is_strictly_two_of_four, make_trainer, needs_cifar10_sample, seeded_unet

from maskpro.distribution import mode
from maskpro.errors import MaskproError, ModelNotFoundError
from maskpro.images import ImageReading
from maskpro.masked_model import maskable_layers, model_hash
from maskpro.pretrained import load_pretrained, save_pipeline
from maskpro.workloads.opening import open_images as open_workload


def test_the_embedded_workload_is_a_trained_diffusers_model(digits):
    parameters = sum(parameter.numel() for parameter in digits.model.parameters())
    assert 400_000 <= parameters <= 1_000_000
    assert len(maskable_layers(digits.model)) > 30
    assert not any(parameter.requires_grad for parameter in digits.model.parameters())


def test_a_local_diffusers_folder_and_images_make_the_cifar10_workload(model_folder, image_folder):
    workload = open_workload("cifar10", model=str(model_folder), data=image_folder)
    assert model_hash(workload.model) == model_hash(seeded_unet())
    assert workload.images.train.shape == (48, 3, 16, 16)
    assert workload.features == "inception-v3"


def test_images_of_a_folder_are_read_as_asked_for_and_counted(model_folder, image_folder, tmp_path):
    said = []
    settings = {"model": str(model_folder), "data": image_folder, "image_cache": tmp_path, "say": said.append}
    workload = open_workload("cifar10", **settings, reading=ImageReading(resize="lanczos", crop="none"))
    assert workload.images.counts.describe() == {
        "read": {"train": 48, "validation": 6, "test": 6},
        "skipped": {},
        "converted": {"reduced": 60},
        "splits": "validation and test taken off the training images",
        "reading": {"resize": "lanczos", "crop": "none", "background": "white"},
    }
    assert said == [f"{image_folder}: {workload.images.counts.line()}"]
    assert not torch.equal(workload.images.train, open_workload("cifar10", **settings).images.train)


def test_a_reading_of_images_that_are_read_as_they_are_is_refused():
    as_it_is = "skip_unreadable False with scikit-learn digits, which is read as it is"
    with pytest.raises(MaskproError, match=f"crop celeba, background white, {as_it_is}"):
        open_workload("digits", reading=ImageReading(crop="celeba"))
    with pytest.raises(MaskproError, match=f"crop centre, background #ff0000, {as_it_is}"):
        open_workload("digits", reading=ImageReading(background="red"))


def test_the_folder_of_cifar10s_batches_itself_is_known(model_folder, tmp_path):
    (tmp_path / "cifar-10-batches-py").mkdir()
    for data in (tmp_path, tmp_path / "cifar-10-batches-py"):
        with pytest.raises(MaskproError, match=r"CIFAR-10 in .* is not whole: data_batch_1 is missing"):
            open_workload("cifar10", model=str(model_folder), data=data)


@pytest.mark.slow
@needs_cifar10_sample
def test_masks_are_learned_on_real_cifar10_images_and_a_model_of_the_hubs_block_types(tmp_path, cifar10_folder):
    save_pipeline(tmp_path, seeded_unet(sample_size=32), DDPMScheduler(num_train_timesteps=1000))
    workload = open_workload("cifar10", model=str(tmp_path), data=cifar10_folder)
    trainer = make_trainer(workload, lr=4.0)
    trainer.train(64)
    assert trainer.finished
    assert 0 < trainer.changed_share() < 0.5
    trainer.masked.set_mask(mode(trainer.logits, 2))
    assert all(is_strictly_two_of_four(mask.float(), "channel") for mask in trainer.masked.layer_masks().values())
    assert all(map(math.isfinite, trainer.validate()))


def test_a_local_ema_folder_is_taken_before_the_hub_model(model_folder, image_folder, monkeypatch):
    ema = model_folder.parent / "pretrained" / "ddpm_ema_cifar10"
    ema.parent.mkdir()
    model_folder.rename(ema)
    monkeypatch.chdir(ema.parents[1])
    workload = open_workload("cifar10", data=image_folder)
    assert workload.model_source == "pretrained/ddpm_ema_cifar10"
    assert workload.ema == "as stored in the checkpoint; not recorded", "a folder's name says nothing"
    (ema / "weights.json").write_text('{"ema": true}')
    assert open_workload("cifar10", data=image_folder).ema == "EMA weights"


def test_a_workload_says_what_is_known_of_its_weights_average(digits, model_folder, image_folder, monkeypatch):
    assert digits.ema == "EMA weights"
    other = open_workload("cifar10", model=str(model_folder), data=image_folder)
    assert other.ema == "as stored in the checkpoint; not recorded"
    monkeypatch.setattr("maskpro.pretrained._download", lambda name: model_folder)
    hub = open_workload("cifar10", model="google/ddpm-cifar10-32", data=image_folder)
    assert hub.ema == "raw weights (not EMA)"


def test_a_flat_folder_as_old_hub_models_have_loads_too(model_folder, tmp_path):
    flat = tmp_path / "flat"
    flat.mkdir()
    for part in ("unet", "scheduler"):
        for file in (model_folder / part).iterdir():
            file.rename(flat / file.name)
    (model_folder / "model_index.json").rename(flat / "model_index.json")
    flat_model = load_pretrained(str(flat))
    assert model_hash(flat_model.unet) == model_hash(seeded_unet())
    assert flat_model.scheduler.config["num_train_timesteps"] == 1000


def test_saved_pipelines_load_with_diffusers(model_folder):
    pipeline = DDPMPipeline.from_pretrained(model_folder, low_cpu_mem_usage=False)
    assert model_hash(pipeline.unet) == model_hash(seeded_unet())


def test_models_that_cannot_be_had_give_one_sentence(tmp_path, model_folder):
    with pytest.raises(ModelNotFoundError, match=r"no model folder .*/nowhere; name a diffusers DDPM folder with --model"):
        load_pretrained(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelNotFoundError, match=r"is not a diffusers pipeline: it has no model_index.json; .*--model"):
        load_pretrained(str(tmp_path / "empty"))
    weights = model_folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(ModelNotFoundError, match=r"can't be loaded .*; name another with --model"):
        load_pretrained(str(model_folder))
    index = model_folder / "model_index.json"
    index.write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
    with pytest.raises(ModelNotFoundError, match="holds a unet of class UNet2DConditionModel; allowed: UNet2DModel"):
        load_pretrained(str(model_folder))
    index.write_text("{")
    with pytest.raises(MaskproError, match="is not JSON"):
        load_pretrained(str(model_folder))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"num_class_embeds": 10}, "is class-conditional; allowed: an unconditional DDPM"),
        ({"out_channels": 6}, "has in_channels 3, out_channels 6"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path, overrides, message):
    save_pipeline(tmp_path, seeded_unet(**overrides), DDPMScheduler())
    with pytest.raises(ModelNotFoundError, match=message):
        load_pretrained(str(tmp_path))


def test_a_hub_model_that_cannot_be_reached_names_the_option(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelNotFoundError, match=r"google/ddpm-cifar10-32 .* could not be had from the hub .*--model"):
        open_workload("cifar10")


def test_unknown_workloads_and_images_of_another_shape_are_refused(model_folder, image_folder):
    with pytest.raises(MaskproError, match="workload is 'imagenet'; allowed: digits, cifar10"):
        open_workload("imagenet")
    with pytest.raises(
        MaskproError, match=r"images of scikit-learn digits are \(1, 8, 8\), the model .* takes \(3, 16, 16\)"
    ):
        open_workload("digits", model=str(model_folder))
    with pytest.raises(MaskproError, match=r"data is .* with workload digits"):
        open_workload("digits", data=image_folder)
