import copy

import pytest
import torch
from conftest import seeded_unet
from safetensors.torch import save_file

from maskpro.errors import MaskproError
from maskpro.initial_masks import random_mask
from maskpro.mask_file import MaskFile, load_mask_file, save_mask_file
from maskpro.masked_model import MaskedModel, model_hash
from maskpro.pattern import NMPattern


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
    assert path.stat().st_size < bits / 8 + 200 * len(content.masks) + 500


def test_a_mask_that_is_not_n_of_m_is_not_written(content, tmp_path):
    name = next(iter(content.masks))
    broken = MaskFile(
        pattern=content.pattern, layout="channel", base_hash="", masks={name: torch.ones_like(content.masks[name])}
    )
    with pytest.raises(MaskproError, match=f"mask of layer {name} is not 2:4"):
        save_mask_file(tmp_path / "masks.safetensors", broken)
    assert list(tmp_path.iterdir()) == []


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
    flipped = bytearray(whole)
    flipped[-5] ^= 0b1000
    path.write_bytes(flipped)
    with pytest.raises(MaskproError, match="is not 2:4"):
        load_mask_file(path)
    save_file({"x": torch.zeros(2)}, path)
    with pytest.raises(MaskproError, match="is not a mask file"):
        load_mask_file(path)
