"""Model folders as they are found: every form of file is loaded exactly, or refused with the name of what is wrong."""

import json
import shutil

import diffusers
import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.training_utils import EMAModel
from safetensors.torch import load_file, save_file
from shared_fixtures import seeded_unet

from maskpro.errors import ModelNotFoundError
from maskpro.files import write_json
from maskpro.masked_model import model_hash
from maskpro.noise_schedule import BETA_SCHEDULES
from maskpro.pretrained import WEIGHTS_RECORD, load_pretrained, resolution, save_pipeline

# Warnings of diffusers' own schedulers, which the tests make.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

WEIGHTS = "diffusion_pytorch_model"


def small_unet(seed=0, **overrides):
    return seeded_unet(seed, **{"sample_size": 8, **overrides})


@pytest.fixture
def folder(tmp_path):
    """A pipeline folder, to be changed."""
    path = tmp_path / "model"
    path.mkdir()
    save_pipeline(path, small_unet(), DDPMScheduler())
    return path


def tensors_of(folder):
    return load_file(folder / "unet" / f"{WEIGHTS}.safetensors")


def rewrite(folder, tensors):
    save_file(tensors, folder / "unet" / f"{WEIGHTS}.safetensors", metadata={"format": "pt"})


def set_config(folder, part, **values):
    name = {"unet": "unet/config.json", "scheduler": "scheduler/scheduler_config.json"}[part]
    write_json(folder / name, json.loads((folder / name).read_text()) | values)


def refusal(folder, **options):
    with pytest.raises(ModelNotFoundError) as caught:
        load_pretrained(str(folder), **options)
    message = str(caught.value)
    assert "\n" not in message
    assert "--model" in message or "--ema" in message
    return message


# Weights


def test_missing_keys_are_named_and_nothing_is_left_uninitialised(folder):
    tensors = tensors_of(folder)
    del tensors["mid_block.resnets.0.conv1.weight"], tensors["conv_norm_out.bias"]
    rewrite(folder, tensors)
    message = refusal(folder)
    assert "lacks 2 of the network's" in message
    assert "mid_block.resnets.0.conv1.weight" in message
    assert "conv_norm_out.bias" in message


def test_an_empty_file_and_another_networks_file_name_what_is_missing(folder):
    rewrite(folder, {"unrelated": torch.zeros(1)})
    assert "it holds unrelated instead" in refusal(folder)
    other = small_unet(block_out_channels=(12, 16))
    rewrite(folder, {name: value.contiguous() for name, value in other.state_dict().items()})
    assert "conv_in.weight is [12, 3, 3, 3], allowed: [8, 3, 3, 3]" in refusal(folder)


def test_extra_keys_are_counted_and_named(folder):
    rewrite(folder, tensors_of(folder) | {"optimizer.step": torch.zeros(1), "loss.weight": torch.zeros(2)})
    loaded = load_pretrained(str(folder))
    assert model_hash(loaded.unet) == model_hash(small_unet())
    assert loaded.notes == ("2 keys belong to no layer and are left out: loss.weight, optimizer.step",)


@pytest.mark.parametrize(
    ("prefix", "said"),
    [
        ("_orig_mod.", "_orig_mod."),
        ("module.", "module."),
        ("model.", "model."),
        ("unet.", "unet."),
        ("module._orig_mod.", "_orig_mod., module."),
        ("state.model.unet.", "state.model.unet."),
        ("module.model.", "module., model."),
    ],
)
def test_prefixes_of_wrappers_are_removed_and_said(folder, prefix, said):
    rewrite(folder, {f"{prefix}{name}": value for name, value in tensors_of(folder).items()})
    loaded = load_pretrained(str(folder))
    assert model_hash(loaded.unet) == model_hash(small_unet())
    assert loaded.notes == (f"prefixes of keys are removed: {said}",)


def test_a_compiled_block_keeps_its_place_in_the_names(folder):
    rewrite(
        folder, {name.replace("mid_block.", "mid_block._orig_mod."): value for name, value in tensors_of(folder).items()}
    )
    assert model_hash(load_pretrained(str(folder)).unet) == model_hash(small_unet())


def test_a_missing_key_under_a_prefix_is_named_without_it(folder):
    tensors = {f"model.{name}": value for name, value in tensors_of(folder).items()}
    del tensors["model.conv_in.weight"]
    rewrite(folder, tensors)
    assert "lacks 1 of the network's" in refusal(folder)
    assert "conv_in.weight" in refusal(folder)


def test_of_two_networks_in_a_file_the_raw_one_is_taken_and_the_other_said(folder):
    tensors = tensors_of(folder)
    averaged = {f"ema_model.{name}": value + 1 for name, value in tensors.items()}
    rewrite(folder, averaged | {f"model.{name}": value for name, value in tensors.items()})
    loaded = load_pretrained(str(folder))
    assert model_hash(loaded.unet) == model_hash(small_unet())
    assert "keys also come with the prefix ema_model.; those are not used" in loaded.notes


def test_keys_that_are_there_twice_are_refused(folder):
    tensors = tensors_of(folder)
    rewrite(folder, tensors | {"module.conv_in.weight": tensors["conv_in.weight"] + 1})
    assert "holds keys twice" in refusal(folder)


def test_the_hubs_old_names_of_attention_are_known(folder):
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    tensors = tensors_of(folder)
    renamed = {}
    for name, value in tensors.items():
        for new, was in old.items():
            name = name.replace(f".{new}.", f".{was}.")
        renamed[name] = value
    assert renamed.keys() != tensors.keys()
    for prefix in ("", "module.", "model."):
        rewrite(folder, {f"{prefix}{name}": value for name, value in renamed.items()})
        assert model_hash(load_pretrained(str(folder)).unet) == model_hash(small_unet())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_are_float32_exactly(folder, dtype):
    tensors = {name: value.to(dtype) for name, value in tensors_of(folder).items()}
    rewrite(folder, tensors)
    loaded = load_pretrained(str(folder))
    state = loaded.unet.state_dict()
    assert all(value.dtype == torch.float32 for value in state.values())
    assert all(torch.equal(state[name].to(dtype), value) for name, value in tensors.items())
    assert loaded.notes == (f"weights stored as {str(dtype)[6:]} are float32",)


def test_quantised_weights_are_refused(folder):
    tensors = tensors_of(folder)
    tensors["conv_in.weight"] = tensors["conv_in.weight"].to(torch.int8)
    rewrite(folder, tensors)
    assert "holds int8 in conv_in.weight" in refusal(folder)


def test_values_that_are_not_finite_are_refused(folder):
    tensors = tensors_of(folder)
    tensors["conv_in.bias"][0] = torch.inf
    rewrite(folder, tensors)
    assert "not finite in conv_in.bias" in refusal(folder)


def bin_file(folder, tensors, name=f"{WEIGHTS}.bin"):
    (folder / "unet" / f"{WEIGHTS}.safetensors").unlink(missing_ok=True)
    torch.save(tensors, folder / "unet" / name)


def test_a_bin_file_loads_and_so_do_weights_in_a_table_of_their_own(folder):
    tensors = tensors_of(folder)
    for content in (tensors, {"state_dict": tensors}, {"epoch": 3, "model": tensors}):
        bin_file(folder, content)
        assert model_hash(load_pretrained(str(folder)).unet) == model_hash(small_unet())


class Harmful:
    def __reduce__(self):
        return (open, ("harm", "w"))


def test_a_bin_file_with_code_in_it_is_refused_unread(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    bin_file(folder, {"weights": Harmful()})
    refusal(folder)
    assert not (tmp_path / "harm").exists()
    bin_file(folder, [1, 2])
    assert "is no table of tensors" in refusal(folder)


@pytest.mark.parametrize("form", ["safetensors", "bin"])
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_load_with_their_index_and_without_it(tmp_path, form, variant):
    unet = small_unet()
    save_pipeline(tmp_path, unet, DDPMScheduler())
    shutil.rmtree(tmp_path / "unet")
    unet.save_pretrained(
        tmp_path / "unet", max_shard_size="20KB", safe_serialization=form == "safetensors", variant=variant
    )
    indices = list((tmp_path / "unet").glob("*index*.json"))
    assert len(indices) == 1
    assert model_hash(load_pretrained(str(tmp_path)).unet) == model_hash(unet)
    indices[0].unlink()
    assert model_hash(load_pretrained(str(tmp_path)).unet) == model_hash(unet)
    shards = sorted((tmp_path / "unet").glob(f"*.{form}"))
    assert len(shards) > 2
    shards[1].unlink()
    assert f"shard {shards[1].name} is missing" in refusal(tmp_path)


def test_weights_in_several_tables_are_told_apart_by_their_names(folder):
    """As training scripts save them; the raw network is taken, wherever it stands."""
    tensors = tensors_of(folder)
    averaged = {name: value + 1 for name, value in tensors.items()}
    steps = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
    bin_file(
        folder, {"ema": averaged, "noise": {"betas": torch.zeros(3)}, "optimizer": steps, "model": tensors, "epoch": 3}
    )
    loaded = load_pretrained(str(folder))
    assert model_hash(loaded.unet) == model_hash(small_unet())
    assert loaded.notes[:2] == (
        "keys also come with the prefix ema.; those are not used",
        "prefixes of keys are removed: model.",
    )
    bin_file(folder, {**tensors, "epoch": 3})
    assert model_hash(load_pretrained(str(folder)).unet) == model_hash(small_unet())


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>404", "no torch file of tensors alone, such as a network's state_dict()"),
        (small_unet, "no torch file of tensors alone, such as a network's state_dict()"),
    ],
    ids=["empty", "a web page", "a whole module"],
)
def test_a_bin_file_that_is_not_opened_says_why(folder, content, said):
    bin_file(folder, None if isinstance(content, bytes) else content())
    if isinstance(content, bytes):
        (folder / "unet" / f"{WEIGHTS}.bin").write_bytes(content)
    assert f"({WEIGHTS}.bin: {said}" in refusal(folder)
    assert "weights_only" not in refusal(folder)


@pytest.mark.parametrize(
    "key",
    [
        "down_blocks.0.attentions.0.to_q.weight",
        "down_blocks.1.attentions.0.to_q.lora.down.weight",
        "down_blocks.1.attentions.0.to_q.lora_A.default.weight",
        "class_embedding.weight",
    ],
)
def test_weights_of_layers_that_the_network_lacks_are_refused(folder, key):
    """Without them it would be another network."""
    for prefix in ("", "module.", "model."):
        tensors = {f"{prefix}{name}": value for name, value in {**tensors_of(folder), key: torch.zeros(4, 16)}.items()}
        path = folder.with_name(f"with_{prefix}")
        shutil.copytree(folder, path)
        rewrite(path, tensors)
        assert f"holds 1 weights of layers that its config.json does not have: {key}; allowed" in refusal(path)


def test_a_middle_block_that_the_config_leaves_out_is_not_dropped(folder):
    set_config(folder, "unet", mid_block_type=None)
    assert "weights of layers that its config.json does not have: mid_block.attentions.0" in refusal(folder)


def test_sparse_tensors_are_made_dense_and_tensors_without_values_refused(folder):
    """As pruned networks are saved, and what an unfinished load leaves."""
    tensors, convolution, linear = tensors_of(folder), "conv_in.weight", "time_embedding.linear_1.weight"
    bin_file(
        folder,
        tensors | {convolution: tensors[convolution].to_sparse(), linear: tensors[linear].half().to_sparse()},
    )
    loaded = load_pretrained(str(folder))
    state = loaded.unet.state_dict()
    assert torch.equal(state[convolution], tensors[convolution])
    assert torch.equal(state[linear], tensors[linear].half().float())
    assert loaded.notes == (
        f"weights stored as sparse tensors are dense with the same zeros: {convolution}, {linear}",
        "weights stored as float16 are float32",
    )
    bin_file(folder, tensors | {convolution: tensors[convolution].to("meta")})
    assert f"holds {convolution} without values (a tensor of the device meta)" in refusal(folder)


def test_what_counters_and_masks_leave_in_a_network_is_left_out_and_said(folder):
    """As thop, and a mask kept beside its weight."""
    rewrite(
        folder,
        tensors_of(folder)
        | {"mid_block.total_ops": torch.zeros(1), "total_params": torch.zeros(1), "conv_in.weight_mask": torch.ones(1)},
    )
    loaded = load_pretrained(str(folder))
    assert model_hash(loaded.unet) == model_hash(small_unet())
    assert loaded.notes == (
        "3 keys belong to no layer and are left out: conv_in.weight_mask, mid_block.total_ops, total_params",
    )


@pytest.mark.parametrize("name", ["ema.safetensors", "non_ema.safetensors", "non_ema.bin"])
def test_other_variants_beside_the_weights_are_said(folder, name):
    tensors, path = tensors_of(folder), folder / "unet" / f"{WEIGHTS}.{name}"
    if path.suffix == ".bin":
        torch.save(tensors, path)
    else:
        save_file(tensors, path)
    said = f"other files of weights beside {WEIGHTS}.safetensors are not used: {path.name}"
    assert load_pretrained(str(folder)).notes == (said,)


def test_the_same_weights_in_another_form_or_precision_go_without_a_word(folder):
    torch.save(tensors_of(folder), folder / "unet" / f"{WEIGHTS}.bin")
    save_file(
        {name: value.half() for name, value in tensors_of(folder).items()}, folder / "unet" / f"{WEIGHTS}.fp16.safetensors"
    )
    assert load_pretrained(str(folder)).notes == ()


def test_of_several_variants_none_is_said_to_be_the_only_one(folder):
    path = folder / "unet" / f"{WEIGHTS}.safetensors"
    shutil.copy(path, folder / "unet" / f"{WEIGHTS}.non_ema.safetensors")
    path.rename(folder / "unet" / f"{WEIGHTS}.ema.safetensors")
    assert load_pretrained(str(folder)).notes == (
        "weights of the variant ema are taken",
        f"other files of weights beside {WEIGHTS}.ema.safetensors are not used: {WEIGHTS}.non_ema.safetensors",
    )


def test_diffusers_own_file_goes_before_that_of_another_library(folder):
    tensors = tensors_of(folder)
    bin_file(folder, tensors)
    save_file({name: value + 1 for name, value in tensors.items()}, folder / "unet" / "model.safetensors")
    loaded = load_pretrained(str(folder))
    assert model_hash(loaded.unet) == model_hash(small_unet())
    assert loaded.notes == (f"other files of weights beside {WEIGHTS}.bin are not used: model.safetensors",)


@pytest.fixture
def sharded(tmp_path):
    """A pipeline folder with shards, and its index."""
    save_pipeline(tmp_path, small_unet(), DDPMScheduler())
    shutil.rmtree(tmp_path / "unet")
    small_unet().save_pretrained(tmp_path / "unet", max_shard_size="20KB")
    return tmp_path, tmp_path / "unet" / f"{WEIGHTS}.safetensors.index.json"


def test_an_index_goes_before_one_file_as_in_diffusers_unless_its_shards_are_gone(sharded):
    folder, index = sharded
    other = small_unet(seed=1)
    save_file(
        {name: value.contiguous() for name, value in other.state_dict().items()}, folder / "unet" / f"{WEIGHTS}.safetensors"
    )
    loaded = load_pretrained(str(folder))
    assert model_hash(loaded.unet) == model_hash(small_unet())
    assert model_hash(UNet2DModel.from_pretrained(folder / "unet", low_cpu_mem_usage=False)) == model_hash(small_unet())
    assert loaded.notes[0].endswith(f"are not used: {WEIGHTS}.safetensors")
    for shard in set(json.loads(index.read_text())["weight_map"].values()):
        (folder / "unet" / shard).unlink()
    loaded = load_pretrained(str(folder))
    assert model_hash(loaded.unet) == model_hash(other)
    assert loaded.notes == ()


@pytest.mark.parametrize("name", [None, ["a"], 3])
def test_an_index_with_other_things_than_names_is_refused(sharded, name):
    folder, index = sharded
    table = json.loads(index.read_text())
    table["weight_map"]["conv_in.weight"] = name
    write_json(index, table)
    assert f"shard {name} is missing" in refusal(folder)


def test_shards_that_do_not_belong_together_are_refused(sharded):
    folder, index = sharded
    shards = sorted((folder / "unet").glob("*.safetensors"))
    last = load_file(shards[-1])
    twice = next(iter(load_file(shards[0])))
    save_file({**{name: value.clone() for name, value in last.items()}, twice: torch.zeros(1)}, shards[-1])
    assert f"shard {shards[-1].name} holds {twice}, as another shard does" in refusal(folder)
    index.unlink()
    (folder / "unet" / f"{WEIGHTS}-00001-of-00002.safetensors").touch()
    assert f"shards of 2 and of {len(shards)} files lie beside each other" in refusal(folder)


def test_json_with_a_byte_order_mark_is_read(folder):
    """As Windows' programs write it."""
    write_json(folder / WEIGHTS_RECORD, {"ema": True})
    for path in folder.rglob("*.json"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    loaded = load_pretrained(str(folder))
    assert model_hash(loaded.unet) == model_hash(small_unet())
    assert loaded.ema == "EMA weights"


def test_a_config_of_another_class_is_refused(folder):
    set_config(folder, "unet", _class_name="UNet2DConditionModel")
    assert "has a config.json of class UNet2DConditionModel; allowed: UNet2DModel" in refusal(folder)


def test_an_index_names_no_file_outside_its_folder(folder):
    (folder / "unet" / f"{WEIGHTS}.safetensors").rename(folder / "elsewhere.safetensors")
    index = {"weight_map": dict.fromkeys(small_unet().state_dict(), "../elsewhere.safetensors")}
    write_json(folder / "unet" / f"{WEIGHTS}.safetensors.index.json", index)
    assert "shard ../elsewhere.safetensors is missing" in refusal(folder)


def test_a_half_precision_variant_alone_is_taken_and_said(folder):
    tensors = {name: value.half() for name, value in tensors_of(folder).items()}
    whole = folder / "unet" / f"{WEIGHTS}.safetensors"
    save_file(tensors, folder / "unet" / f"{WEIGHTS}.fp16.safetensors")
    assert load_pretrained(str(folder)).notes == (), "the plain file goes first"
    whole.unlink()
    loaded = load_pretrained(str(folder))
    assert "weights of the variant fp16 are taken, the only ones there" in loaded.notes
    assert torch.equal(loaded.unet.state_dict()["conv_in.weight"], tensors["conv_in.weight"].float())


def test_other_files_of_weights_are_named(folder):
    path = folder / "unet" / f"{WEIGHTS}.safetensors"
    path.rename(path.with_name("epoch_3.ckpt"))
    assert "there are epoch_3.ckpt" in refusal(folder)


def test_a_network_is_loaded_without_touching_the_global_random_numbers(folder):
    state = torch.random.get_rng_state()
    load_pretrained(str(folder))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_a_file_with_a_slash_in_its_name_is_not_looked_for_on_the_hub(folder, monkeypatch):
    monkeypatch.setattr("maskpro.pretrained._download", lambda name: pytest.fail("asked the hub"))
    monkeypatch.chdir(folder)
    (folder / "unet" / "link").symlink_to("nowhere")
    for name in (f"unet/{WEIGHTS}.safetensors", "unet/link"):
        assert f"no model folder {name}; name" in refusal(name)


def test_a_file_that_changes_later_leaves_the_network_alone(folder):
    loaded = load_pretrained(str(folder))
    path = folder / "unet" / f"{WEIGHTS}.safetensors"
    with path.open("r+b") as opened:
        opened.seek(path.stat().st_size - 4000)
        opened.write(b"\0" * 4000)
    assert model_hash(loaded.unet) == model_hash(small_unet())


def test_configs_that_no_network_can_be_made_of_are_one_sentence(folder):
    set_config(folder, "unet", norm_num_groups=3)
    assert "can't be made of" in refusal(folder)
    set_config(folder, "unet", norm_num_groups=4, down_block_types=["NoBlock2D"] * 2)
    assert "can't be made of" in refusal(folder)
    (folder / "unet" / "config.json").write_text("[]")
    assert "holds no table" in refusal(folder)
    (folder / "unet" / "config.json").unlink()
    assert "no file" in refusal(folder)


def test_unknown_entries_of_a_config_are_said(folder):
    set_config(folder, "unet", attention_type="flash")
    assert load_pretrained(str(folder)).notes == (
        "entries of config.json that UNet2DModel doesn't know are left out: attention_type",
    )


# The hub


def test_a_hub_model_with_bin_files_alone_is_downloaded_whole(folder, tmp_path, monkeypatch):
    from huggingface_hub.utils import filter_repo_objects

    bin_file(folder, tensors_of(folder))
    (folder / "unet" / "train.log").write_text("")
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append(allow_patterns)
        files = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()]
        for file in filter_repo_objects(files, allow_patterns=allow_patterns):
            (tmp_path / "cache" / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(folder / file, tmp_path / "cache" / file)
        return str(tmp_path / "cache")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert model_hash(load_pretrained("somebody/ddpm").unet) == model_hash(small_unet())
    assert asked == [["*.json", "*.safetensors"], ["*.json", "*.bin"]]
    assert not (tmp_path / "cache" / "unet" / "train.log").exists()


# Shapes and kinds of network


@pytest.mark.parametrize("size", [8, [8, 8]])
def test_a_square_sample_size_may_be_a_number_or_two(folder, size):
    set_config(folder, "unet", sample_size=size)
    assert resolution(load_pretrained(str(folder)).unet) == 8


@pytest.mark.parametrize("size", [[32, 48], None, [8], 0, "8"])
def test_other_sample_sizes_say_what_is_allowed(folder, size):
    set_config(folder, "unet", sample_size=size)
    assert f"sample_size {json.dumps(size)}; allowed: as many out as in, and a square sample_size" in refusal(folder)


def test_a_fourier_time_embedding_is_refused_with_the_reason(tmp_path):
    save_pipeline(tmp_path, small_unet(time_embedding_type="fourier"), DDPMScheduler())
    assert "time_embedding_type fourier" in refusal(tmp_path)
    assert "not finite at timestep 0" in refusal(tmp_path)


def test_a_learned_time_embedding_must_know_all_timesteps(tmp_path):
    save_pipeline(tmp_path, small_unet(time_embedding_type="learned", num_train_timesteps=500), DDPMScheduler())
    assert "knows 500 timesteps, its scheduler has 1000" in refusal(tmp_path)
    set_config(tmp_path, "scheduler", num_train_timesteps=500)
    assert load_pretrained(str(tmp_path)).unet.config["time_embedding_type"] == "learned"


@pytest.mark.parametrize(
    ("index", "kind"),
    [
        ({"_class_name": "LDMPipeline", "vqvae": ["diffusers", "VQModel"]}, "latent diffusion"),
        ({"_class_name": "SomePipeline", "vae": ["diffusers", "AutoencoderKL"]}, "latent diffusion"),
        ({"_class_name": "ConsistencyModelPipeline"}, "a consistency model"),
        ({"_class_name": "ScoreSdeVePipeline"}, "a variance-exploding process"),
        ({"_class_name": "KarrasVePipeline"}, "a variance-exploding process"),
        ({"text_encoder": ["transformers", "CLIPTextModel"]}, "conditioned on text"),
    ],
)
def test_pipelines_that_are_no_image_ddpm_are_refused_by_their_index(folder, index, kind):
    path = folder / "model_index.json"
    write_json(path, json.loads(path.read_text()) | index)
    message = refusal(folder)
    assert f"({kind})" in message
    assert index.get("_class_name", "DDPMPipeline") in message


@pytest.mark.parametrize("name", ["DDPMPipeline", "DDIMPipeline", "PNDMPipeline", "MyDDPM"])
def test_pipelines_of_unet_and_scheduler_alone_are_served(folder, name):
    path = folder / "model_index.json"
    index = json.loads(path.read_text()) | {"_class_name": name, "vqvae": [None, None], "mel": ["diffusers", "Mel"]}
    write_json(path, index)
    assert load_pretrained(str(folder)).notes == ("mel of the pipeline is not used",)


def test_a_pipeline_with_code_of_its_own_is_named_by_module_and_class(folder):
    path = folder / "model_index.json"
    write_json(path, json.loads(path.read_text()) | {"_class_name": ["my_pipeline", "MyDDPM"]})
    assert load_pretrained(str(folder)).notes == ("my_pipeline.py of the pipeline is not used",)
    write_json(path, json.loads(path.read_text()) | {"_class_name": ["my_pipeline", "LDMPipeline"]})
    assert "is a LDMPipeline of" in refusal(folder)


def test_the_unet_folder_of_a_pipeline_points_to_the_pipeline(folder):
    assert f"the pipeline is {folder}" in refusal(folder / "unet")


# Noise schedules


@pytest.mark.parametrize(
    "name",
    [
        "DDIMScheduler",
        "DDIMParallelScheduler",
        "PNDMScheduler",
        "DPMSolverMultistepScheduler",
        "DPMSolverSinglestepScheduler",
        "DEISMultistepScheduler",
        "UniPCMultistepScheduler",
        "EulerDiscreteScheduler",
        "EulerAncestralDiscreteScheduler",
        "HeunDiscreteScheduler",
        "LMSDiscreteScheduler",
        "KDPM2DiscreteScheduler",
    ],
)
@pytest.mark.parametrize("schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_other_samplers_are_read_with_their_own_betas_and_prediction_type(folder, name, schedule):
    options = {"beta_schedule": schedule, "beta_end": 0.013, "num_train_timesteps": 500}
    prediction_type = "epsilon" if name == "LMSDiscreteScheduler" else "v_prediction"
    original = getattr(diffusers, name)(**options, prediction_type=prediction_type)
    shutil.rmtree(folder / "scheduler")
    original.save_pretrained(folder / "scheduler")
    loaded = load_pretrained(str(folder))
    assert type(loaded.scheduler) is DDPMScheduler
    assert torch.equal(loaded.scheduler.betas, original.betas)
    assert loaded.scheduler.config["prediction_type"] == prediction_type
    assert loaded.scheduler.config["clip_sample"] is bool(original.config.get("clip_sample", False))
    assert loaded.notes == (f"{name} is read as the DDPM noise schedule of its betas; its own way of sampling is not used",)
    json.dumps(dict(loaded.scheduler.config), allow_nan=False)
    # The checkpoint that is saved with it holds these betas.
    loaded.scheduler.save_pretrained(folder / "again")
    assert torch.equal(DDPMScheduler.from_pretrained(folder / "again").betas, original.betas)


def test_clipping_is_that_of_the_folder(folder):
    shutil.rmtree(folder / "scheduler")
    diffusers.DDIMScheduler(clip_sample=True, clip_sample_range=2.0, thresholding=True).save_pretrained(
        folder / "scheduler"
    )
    config = load_pretrained(str(folder)).scheduler.config
    assert (config["clip_sample"], config["clip_sample_range"], config["thresholding"]) == (True, 2.0, True)


def test_betas_that_no_name_of_ddpms_stands_for_are_kept_as_values(folder):
    shutil.rmtree(folder / "scheduler")
    original = diffusers.HeunDiscreteScheduler(beta_schedule="exp")
    original.save_pretrained(folder / "scheduler")
    assert torch.equal(load_pretrained(str(folder)).scheduler.betas, original.betas)
    given = torch.linspace(0.001, 0.02, 1000).tolist()
    shutil.rmtree(folder / "scheduler")
    diffusers.EulerDiscreteScheduler(trained_betas=given).save_pretrained(folder / "scheduler")
    assert torch.equal(load_pretrained(str(folder)).scheduler.betas, torch.tensor(given))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("FlowMatchEulerDiscreteScheduler", "flow matching"),
        ("FlowMatchHeunDiscreteScheduler", "flow matching"),
        ("ScoreSdeVeScheduler", "a variance-exploding process"),
        ("ScoreSdeVpScheduler", "a process in continuous time"),
        ("KarrasVeScheduler", "a variance-exploding process"),
        ("EDMEulerScheduler", "the sigmas of EDM, a variance-exploding process"),
        ("CMStochasticIterativeScheduler", "a consistency model"),
        ("LCMScheduler", "a consistency model"),
        ("VQDiffusionScheduler", "not known as one of a DDPM's betas"),
        ("NoSuchScheduler", "not known as one of a DDPM's betas"),
    ],
)
def test_schedules_of_another_kind_are_refused_by_name(folder, name, kind):
    set_config(folder, "scheduler", _class_name=name)
    assert f"scheduler is a {name} ({kind}); allowed: the noise schedule of a DDPM" in refusal(folder)


def test_the_index_alone_may_name_the_class_of_the_scheduler(folder):
    path = folder / "model_index.json"
    write_json(path, json.loads(path.read_text()) | {"scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]})
    assert "scheduler is a FlowMatchEulerDiscreteScheduler" in refusal(folder)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (
            {"trained_betas": [0.01] * 500},
            "trained_betas of the scheduler is 500 values; allowed with num_train_timesteps 1000",
        ),
        ({"trained_betas": "linear"}, "trained_betas of the scheduler is 'linear'; allowed"),
        ({"trained_betas": [2.0] * 1000}, "betas of the scheduler lie between 2 and 2; allowed: 0 to 1"),
        ({"beta_start": 0, "beta_end": 0}, "betas of the scheduler lie between 0 and 0; allowed: 0 to 1, not all 0"),
        ({"beta_schedule": "cosine"}, "beta_schedule of the scheduler is 'cosine'; allowed: linear, scaled_linear"),
        ({"prediction_type": "flow_prediction"}, "prediction_type of the scheduler is 'flow_prediction'; allowed: epsilon"),
        ({"num_train_timesteps": 0}, "num_train_timesteps of the scheduler is 0; allowed"),
        ({"clip_sample": "false"}, "clip_sample of the scheduler is 'false'; allowed: true or false"),
        ({"thresholding": "no"}, "thresholding of the scheduler is 'no'; allowed: true or false"),
        ({"beta_start": "low"}, "beta_start of the scheduler is 'low'; allowed: a number"),
        ({"beta_end": 10**30}, "DDPMScheduler can't be made of its scheduler_config.json (int too big to convert)"),
        ({"rescale_betas_zero_snr": True}, "leave nothing of the image at the last timestep"),
    ],
)
def test_values_of_a_schedule_that_are_not_allowed_are_named(folder, values, message):
    set_config(folder, "scheduler", **values)
    assert message in refusal(folder)


def test_flow_sigmas_and_continuous_timesteps_are_refused(folder):
    set_config(folder, "scheduler", _class_name="DPMSolverMultistepScheduler", use_flow_sigmas=True)
    assert "use_flow_sigmas True" in refusal(folder)
    set_config(folder, "scheduler", _class_name="EulerDiscreteScheduler", use_flow_sigmas=None, timestep_type="continuous")
    assert "timestep_type continuous" in refusal(folder)


@pytest.mark.parametrize("schedule", BETA_SCHEDULES)
def test_every_beta_schedule_of_ddpm_is_served(folder, schedule):
    set_config(folder, "scheduler", beta_schedule=schedule)
    assert torch.equal(load_pretrained(str(folder)).scheduler.betas, DDPMScheduler(beta_schedule=schedule).betas)


def test_the_old_name_of_the_prediction_type_is_known(folder):
    """predict_epsilon; today's diffusers passes it over, and takes such a network for one that predicts noise."""
    path = folder / "scheduler" / "scheduler_config.json"
    config = json.loads(path.read_text())
    for old, new in ((True, "epsilon"), (False, "sample")):
        old_config = {name: value for name, value in config.items() if name != "prediction_type"}
        write_json(path, old_config | {"predict_epsilon": old})
        loaded = load_pretrained(str(folder))
        assert loaded.scheduler.config["prediction_type"] == new
        note = f"predict_epsilon {str(old).lower()} of the scheduler is read as prediction_type {new}"
        assert loaded.notes == (note,)
    write_json(path, config | {"predict_epsilon": False, "prediction_type": "v_prediction"})
    assert load_pretrained(str(folder)).scheduler.config["prediction_type"] == "v_prediction"
    for old, new in ((False, "epsilon"), (True, "sample"), ("false", "epsilon")):
        write_json(path, config | {"predict_epsilon": old, "prediction_type": new})
        assert f"predict_epsilon of the scheduler is {old!r} and prediction_type {new!r}; allowed" in refusal(folder)


def test_what_is_guessed_or_left_out_of_a_schedule_is_said(folder):
    path = folder / "scheduler" / "scheduler_config.json"
    set_config(folder, "scheduler", timesteps=500, _diffusers_version="0.0.1")
    assert load_pretrained(str(folder)).notes == (
        "entries of scheduler_config.json that DDPMScheduler doesn't know are left out: timesteps",
    )
    write_json(path, {})
    assert load_pretrained(str(folder)).notes == (
        "scheduler_config.json lacks num_train_timesteps, beta_start, beta_end, beta_schedule; the values of diffusers' "
        "DDPMScheduler are taken",
    )
    index = folder / "model_index.json"
    write_json(index, json.loads(index.read_text()) | {"scheduler": [None, None]})
    assert load_pretrained(str(folder)).notes[0] == (
        "no file names the class of the scheduler; it is read as a DDPMScheduler"
    )


def test_a_folder_without_a_scheduler_is_refused(folder):
    shutil.rmtree(folder / "scheduler")
    assert "scheduler_config.json" in refusal(folder)


# What is known of the weights' average


def test_ema_is_known_by_a_record_alone(folder):
    named = folder.with_name("ddpm_ema_cifar10")
    folder.rename(named)
    assert load_pretrained(str(named)).ema == "as stored in the checkpoint; not recorded"
    for record, words in ((True, "EMA weights"), (False, "raw weights (not EMA)"), ("EMA of 0.9999", "EMA of 0.9999")):
        write_json(named / WEIGHTS_RECORD, {"ema": record})
        assert load_pretrained(str(named)).ema == words
    write_json(named / WEIGHTS_RECORD, {"average": 1})
    with pytest.raises(ModelNotFoundError, match=r'weights.json holds .*; allowed: {"ema": true}'):
        load_pretrained(str(named))


def test_averaged_weights_beside_the_others_are_offered_and_taken_by_an_option(folder):
    assert "has no folder unet_ema" in refusal(folder, ema=True)
    average = small_unet(seed=1)
    ema = EMAModel(average.parameters(), decay=0.9, model_cls=UNet2DModel, model_config=average.config)
    ema.save_pretrained(folder / "unet_ema")
    plain = load_pretrained(str(folder))
    assert model_hash(plain.unet) == model_hash(small_unet())
    assert plain.ema == "as stored in the checkpoint; not recorded"
    assert plain.notes == ("unet_ema/ beside unet/ holds weights averaged over the training; --ema takes them",)
    averaged = load_pretrained(str(folder), ema=True)
    assert model_hash(averaged.unet) == model_hash(average)
    assert averaged.ema == "EMA weights"
    assert averaged.notes == ("the weights are those of unet_ema/ (--ema)",)
    shutil.rmtree(folder / "unet")
    assert "has a folder unet_ema but no unet; allowed: --ema, which takes it" in refusal(folder)
    (folder / "unet_ema").rename(folder / "unet")
    assert load_pretrained(str(folder)).ema == "EMA weights (decay 0.9, 0 steps, of diffusers' EMAModel)"


def test_a_saved_pipeline_hands_the_record_on(tmp_path):
    save_pipeline(tmp_path, small_unet(), DDPMScheduler(), ema="EMA weights")
    assert load_pretrained(str(tmp_path)).ema == "EMA weights"
    assert diffusers.DDPMPipeline.from_pretrained(tmp_path, low_cpu_mem_usage=False).unet.config["sample_size"] == 8


def test_a_pointer_of_git_lfs_is_known(folder):
    """As a clone without Git LFS has them."""
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 143\n"
    (folder / "unet" / f"{WEIGHTS}.safetensors").write_text(pointer)
    assert f"({WEIGHTS}.safetensors: a pointer of Git LFS, to be fetched with git lfs pull)" in refusal(folder)


@pytest.mark.parametrize("name", ["", " "])
def test_an_empty_name_is_no_model(name):
    """As of a variable that isn't set."""
    assert refusal(name).startswith(f"model is {name!r}; allowed: ")


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"clip_sample_range": 0}, "clip_sample_range of the scheduler is 0; allowed: a number above 0"),
        ({"clip_sample_range": None}, "clip_sample_range of the scheduler is None; allowed: a number above 0"),
        (
            {"num_train_timesteps": 10**9},
            "num_train_timesteps of the scheduler is 1000000000; allowed: a whole number from 1",
        ),
        ({"beta_start": "0.0001"}, "beta_start of the scheduler is '0.0001'; allowed: a number"),
        (
            {"thresholding": True, "dynamic_thresholding_ratio": 7.0},
            "dynamic_thresholding_ratio of the scheduler is 7.0; allowed",
        ),
        (
            {"thresholding": True, "sample_max_value": 0.5},
            "sample_max_value of the scheduler is 0.5; allowed: a number of at",
        ),
    ],
    ids=str,
)
def test_values_that_no_sampler_can_use_are_refused(folder, values, said):
    set_config(folder, "scheduler", **values)
    assert said in refusal(folder)


def test_values_that_are_not_used_are_left_alone(folder):
    set_config(folder, "scheduler", clip_sample=False, clip_sample_range=None, dynamic_thresholding_ratio=7.0)
    assert load_pretrained(str(folder)).scheduler.config["clip_sample"] is False
