"""What it is worth to keep layers dense: the curve from a mask to the dense network."""

import copy
from dataclasses import replace

import pytest
import torch

from maskpro.dense_curve import dense_curve
from maskpro.fidelity import fidelity
from maskpro.initial_masks import magnitude_masked_model
from maskpro.masked_model import model_hash
from maskpro.metrics import masked_copy
from maskpro.pattern import NMPattern

CPU = torch.device("cpu")
FORM = {"pattern": NMPattern(2, 4), "layout": "channel"}


@pytest.fixture
def workload(digits):
    return replace(digits, budgets=replace(digits.budgets, validation_samples=64))


@pytest.mark.slow
def test_the_curve_goes_from_the_mask_to_the_dense_network(workload):
    before = model_hash(workload.model)
    initial = magnitude_masked_model(workload.model, **FORM, dense=("mid_block",))
    rows = dense_curve(workload, initial, device=CPU)

    held_out = workload.held_out_samples("validation", CPU)
    of_all = held_out.judge(initial.model).means().error
    assert (rows[0]["num_dense"], rows[0]["layers"], rows[0]["val_error"], rows[0]["fidelity"]) == (0, "", of_all, 0)
    # mid_block is dense by choice, and the first and the last convolution are protected.
    assert 0.5 < rows[0]["sparse_multiply_adds_share"] < 0.99
    assert (rows[-1]["num_dense"], rows[-1]["sparse_multiply_adds_share"]) == (len(initial.layers), 0)
    assert rows[-1]["val_error"] == pytest.approx(0, abs=1e-12)
    assert [row["num_dense"] for row in rows] == sorted({row["num_dense"] for row in rows})
    shares = [row["sparse_multiply_adds_share"] for row in rows]
    assert shares == sorted(shares, reverse=True)
    names = " ".join(row["layers"] for row in rows).split()
    assert sorted(names) == sorted(layer.name for layer in initial.layers)

    # A row in the middle is the mask with those layers dense and no others.
    middle = len(rows) // 2
    dense = set(" ".join(row["layers"] for row in rows[: middle + 1]).split())
    assert len(dense) == rows[middle]["num_dense"]
    network = copy.deepcopy(workload.model)
    for name, mask in initial.layer_masks().items():
        network.get_submodule(name).weight.data *= mask | (name in dense)
    found = held_out.judge(network).means().error
    assert rows[middle]["val_error"] == pytest.approx(found, rel=1e-4)
    assert rows[middle]["fidelity"] == pytest.approx(fidelity(of_all, found), rel=1e-4)
    assert model_hash(workload.model) == before


@pytest.mark.slow
def test_the_layer_that_alone_is_hurt_comes_first(workload):
    """In all other layers the mask removes only what is 0 anyway."""
    hurt = "down_blocks.1.resnets.0.conv1"
    masks = magnitude_masked_model(workload.model, **FORM).layer_masks()
    network = masked_copy(workload.model, masks, **FORM)
    network.get_submodule(hurt).weight.data.copy_(workload.model.get_submodule(hurt).weight.data)
    initial = magnitude_masked_model(network, **FORM)
    rows = dense_curve(replace(workload, model=network), initial, device=CPU)
    assert rows[1]["layers"].split()[0] == hurt
    assert [row["fidelity"] for row in rows] == [0, *[pytest.approx(1)] * (len(rows) - 1)]
