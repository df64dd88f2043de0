import copy
import errno
import os

import pytest
import torch
from diffusers.models.unets.unet_2d import UNet2DModel
from safetensors import safe_open
from safetensors.torch import save_file
from shared_fixtures import seeded_unet

from maskpro.errors import MaskproError
from maskpro.initial_masks import random_mask
from maskpro.mask_file import MaskFile, _description_checksum, inspect_mask_file, load_mask_file, save_mask_file
from maskpro.masked_model import MaskedModel, maskable_layers, model_hash
from maskpro.pattern import NMPattern, weight_view


@pytest.fixture
def content(generator):
    unet = seeded_unet()
    masked = MaskedModel(copy.deepcopy(unet), pattern=NMPattern(2, 4))
    masked.set_mask(random_mask(masked, generator))
    return MaskFile(
        pattern=masked.pattern,
        layout="channel",
        base_hash=model_hash(unet),
        masks=masked.layer_masks(),
        provenance={"seed": 0},
    )


def test_a_mask_file_round_trips_at_one_bit_a_weight(content, tmp_path):
    path = tmp_path / "masks.safetensors"
    save_mask_file(path, content)
    loaded = load_mask_file(path)
    assert (loaded.pattern, loaded.layout, loaded.base_hash) == (content.pattern, content.layout, content.base_hash)
    assert loaded.provenance == {"seed": 0}
    assert loaded.masks.keys() == content.masks.keys()
    assert all(torch.equal(loaded.masks[name], mask) for name, mask in content.masks.items())
    bits = sum(mask.numel() for mask in content.masks.values())
    assert path.stat().st_size < bits / 8 + 250 * len(content.masks) + 500


def test_a_mask_that_is_not_n_of_m_is_not_written(content, tmp_path):
    name = next(iter(content.masks))
    broken = MaskFile(
        pattern=content.pattern, layout="channel", base_hash="", masks={name: torch.ones_like(content.masks[name])}
    )
    with pytest.raises(MaskproError, match=f"mask of layer {name} is not 2:4"):
        save_mask_file(tmp_path / "masks.safetensors", broken)
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_this_user_may_not_read_is_the_systems_own_error(content, tmp_path, monkeypatch):
    """The commands make a sentence of it by its number; safetensors' own error has none, and says that there is no file."""
    path = tmp_path / "masks.safetensors"
    save_mask_file(path, content)

    def refuse(self, *arguments, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(self))

    monkeypatch.setattr(type(path), "open", refuse)
    with pytest.raises(PermissionError) as caught:
        load_mask_file(path)
    assert (caught.value.errno, caught.value.filename) == (errno.EACCES, str(path))


def test_damaged_files_are_refused(content, tmp_path):
    path = tmp_path / "masks.safetensors"
    save_mask_file(path, content)
    whole = path.read_bytes()
    with pytest.raises(MaskproError, match="no mask file"):
        load_mask_file(tmp_path / "none.safetensors")
    for damaged in (whole[: len(whole) // 2], b"", b"not safetensors at all"):
        path.write_bytes(damaged)
        with pytest.raises(MaskproError, match="is damaged or not safetensors"):
            load_mask_file(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(MaskproError, match="is not a mask file"):
        load_mask_file(path)


def test_every_flipped_bit_is_found(content, tmp_path):
    """Also those that leave a mask n:m, and those in the description."""
    path = tmp_path / "masks.safetensors"
    save_mask_file(path, content)
    whole = path.read_bytes()
    for position in range(0, len(whole), 97):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        with pytest.raises(MaskproError):
            load_mask_file(path)


def test_damage_is_told_layer_by_layer(content, tmp_path):
    path = tmp_path / "masks.safetensors"
    save_mask_file(path, content)
    flipped = bytearray(path.read_bytes())
    flipped[-5] ^= 0b1000
    path.write_bytes(flipped)
    inspected, problems = inspect_mask_file(path)
    assert inspected.masks.keys() == content.masks.keys()
    (problem,) = problems.values()
    assert problem.startswith("does not match its checksum and is not 2:4 in layout channel: 1 of ")
    with pytest.raises(MaskproError, match=r"is damaged: layer \S+ does not match its checksum"):
        load_mask_file(path)


def edited(path, change):
    """The file after a change of its description and tensors, with the right checksum of the description."""
    with safe_open(path, framework="pt") as opened:
        metadata, packed = dict(opened.metadata()), {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
    change(metadata, packed)
    metadata.pop("checksum")
    save_file(packed, path, metadata=metadata | {"checksum": _description_checksum(metadata)})


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        (lambda about, packed: about.update(shapes="[1]"), "its description can't be read"),
        (lambda about, packed: about.update(shapes=f'{{"a.b": [{10**20}]}}'), "its description can't be read"),
        (lambda about, packed: about.update(checksums="[1]"), "its description can't be read"),
        (lambda about, packed: about.update(provenance="3"), "its description can't be read"),
        (lambda about, packed: about.pop("pattern"), "its description can't be read"),
        (lambda about, packed: about.update(layout="row"), "its description can't be read .*layout is 'row'; allowed"),
        (
            lambda about, packed: packed.update({"a.b": torch.zeros(8, dtype=torch.uint8)}),
            "it holds a.b, which its description does not name",
        ),
        (lambda about, packed: (packed.clear(), about.update(shapes="{}")), "it holds no layer"),
    ],
)
def test_a_file_that_was_edited_is_refused_in_one_sentence(content, tmp_path, change, problem):
    path = tmp_path / "masks.safetensors"
    save_mask_file(path, content)
    edited(path, change)
    with pytest.raises(MaskproError, match=f"mask file .* is damaged: {problem}") as caught:
        load_mask_file(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["../../etc/passwd", "/tmp/x", "a/b", "conv 1", "", "a..b", "a\nb", "ä", "a[0]", "%"])
def test_a_layer_name_that_is_no_module_path_is_refused(content, tmp_path, name):
    broken = MaskFile(
        pattern=content.pattern, layout="channel", base_hash="", masks={name: next(iter(content.masks.values()))}
    )
    with pytest.raises(MaskproError, match="allowed: module paths"):
        save_mask_file(tmp_path / "masks.safetensors", broken)
    assert list(tmp_path.iterdir()) == []


def test_the_mask_file_of_a_cifar10_ddpm_stays_under_5_mb(tmp_path):
    """The 35.7M-parameter UNet of Ho et al. 2020, made without its weights."""
    with torch.device("meta"):
        unet = UNet2DModel(
            sample_size=32,
            block_out_channels=(128, 256, 256, 256),
            down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        )
    assert sum(parameter.numel() for parameter in unet.parameters()) == pytest.approx(35.7e6, rel=0.01)
    row = torch.tensor([True, True, False, False])
    masks = {
        name: weight_view(row.repeat(weight.numel() // 4), weight.shape, "channel").contiguous()
        for name, weight in maskable_layers(unet).items()
    }
    save_mask_file(
        tmp_path / "masks.safetensors", MaskFile(pattern=NMPattern(2, 4), layout="channel", base_hash="0" * 64, masks=masks)
    )
    assert (tmp_path / "masks.safetensors").stat().st_size < 5e6
