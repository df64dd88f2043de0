"""Masked networks timed, dense and on 2:4 kernels; what is timed, not how long it takes."""

import copy
from contextlib import contextmanager
from dataclasses import replace

import pandas as pd
import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from maskpro.cli import app
from maskpro.embedded import DIGITS_MODEL
from maskpro.errors import MaskproError
from maskpro.export import latency, masked_network
from maskpro.initial_masks import magnitude_masked_model
from maskpro.mask_file import MaskFile, save_mask_file
from maskpro.masked_model import model_hash
from maskpro.pattern import NMPattern
from maskpro.pretrained import load_pretrained

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    dense = load_pretrained(str(DIGITS_MODEL))
    masked = magnitude_masked_model(copy.deepcopy(dense.unet), pattern=NMPattern(2, 4), layout="channel")
    masks = MaskFile(
        pattern=masked.pattern,
        layout="channel",
        base_hash=model_hash(dense.unet),
        masks=masked.layer_masks(),
        provenance={},
    )
    found = masked_network(dense, masks)
    # An image of zeros at timestep 0 gives some layers the same number everywhere.
    return replace(found, unet=copy.deepcopy(found.unet))


@pytest.fixture
def runs(monkeypatch):
    """The outputs of all that is timed, in its order; each next one takes a millisecond longer."""
    outputs = []

    def milliseconds(run, seconds):
        outputs.append(run())
        return float(len(outputs))

    monkeypatch.setattr(latency, "_milliseconds", milliseconds)
    return outputs


def test_dense_and_2_to_4_passes_of_the_network_and_of_each_eligible_layer_are_timed(network, runs):
    found = latency.network_eligibility(network)
    assert found.multiply_adds > 15_000_000
    eligible = [row for row in found.layers if row.eligible]
    assert len(eligible) == 21
    rows = list(latency.network_latencies(network, found, (1, 3), device=CPU, compress=lambda weight: weight))
    names = [latency.NETWORK, latency.ELIGIBLE, *(row.layer for row in eligible)]
    assert [(row.what, row.batch) for row in rows] == [(name, batch) for batch in (1, 3) for name in names]
    for dense, sparse in zip(runs[::2], runs[1::2], strict=True):
        torch.testing.assert_close(sparse, dense, rtol=0, atol=2e-5)
    assert {len(output) for output in runs[: len(runs) // 2]} == {1}
    assert {len(output) for output in runs[len(runs) // 2 :]} == {3}

    whole, together, *layers = rows[: len(names)]
    assert (whole.dense_ms, whole.sparse_ms, whole.speed_up) == (1.0, 2.0, 0.5)
    assert whole.most_expected == found.most_speed_up()
    assert together.dense_ms == sum(row.dense_ms for row in layers)
    assert together.sparse_ms == sum(row.sparse_ms for row in layers)
    assert [row.gain for row in layers] == [row.gain for row in eligible]
    assert whole.line() == (
        f"the network, batch 1: dense 1.000 ms, 2:4 2.000 ms, 0.50 times as fast, no gain here (expected: at most "
        f"{found.most_speed_up():.2f})"
    )
    assert layers[0].line().endswith("no gain here (expected: at most 2.00, a gain was unlikely)")


def test_the_sweep_times_square_layers_whose_weights_are_2_to_4(runs):
    weights = []
    rows = latency.sweep_latencies(
        torch.float32, device=CPU, compress=lambda weight: weights.append(weight) or weight, sizes=(16, 32), rows=5
    )
    assert [(row.what, row.batch, row.gain) for row in rows] == [("Linear 16 x 16", 5, None), ("Linear 32 x 32", 5, None)]
    assert [weight.shape for weight in weights] == [(16, 16), (32, 32)]
    assert all(((weight.view(-1, 4) != 0).sum(dim=1) == 2).all() for weight in weights)
    assert [output.shape for output in runs] == [(5, 16), (5, 16), (5, 32), (5, 32)]


def test_a_pass_is_timed_in_milliseconds():
    layer, values = nn.Linear(4, 4), torch.zeros(1, 4)
    assert 0 < latency._milliseconds(lambda: layer(values), 0.01) < 1000


def test_the_timer_waits_for_the_gpu_on_which_a_pass_runs(monkeypatch):
    entered = []

    @contextmanager
    def device_of(values):
        entered.append(values)
        yield
        entered.append(None)

    monkeypatch.setattr(torch.cuda, "device_of", device_of)
    monkeypatch.setattr(latency, "_milliseconds", lambda run, seconds: entered.append("timed") or 1.0)
    list(latency.sweep_latencies(torch.float32, device=CPU, compress=lambda weight: weight, sizes=(16,), rows=5))
    values, *rest = entered
    assert values.shape == (5, 16)
    assert rest == ["timed", "timed", None]


def bench(*arguments):
    return CliRunner().invoke(app, ["bench-export", *map(str, arguments)], catch_exceptions=False)


def test_without_a_gpu_what_is_to_be_expected_is_said_and_nothing_is_timed(network, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    save_mask_file(tmp_path / "masks.safetensors", network.masks)
    result = bench(tmp_path / "masks.safetensors", "--output", tmp_path / "table.csv")
    assert result.exit_code == 0, result.output
    lines = result.output.splitlines()
    assert len([line for line in lines if "not eligible, as it has a 3x3 kernel" in line]) == 18
    assert "torch alone can speed up at most 10.2% of the multiply-adds" in result.output
    assert lines[-1] == (
        f"nothing was timed, as torch's 2:4 kernels can't run (device is cpu), and {tmp_path / 'table.csv'} is not written"
    )
    assert not (tmp_path / "table.csv").exists()


def test_the_command_writes_what_it_timed_as_a_table(network, tmp_path, monkeypatch, runs):
    monkeypatch.setattr("maskpro.export.semi_structured.missing_kernels", lambda device: "")
    monkeypatch.setattr("maskpro.export.semi_structured.kernel_compress", lambda dtype, device: lambda weight: weight)
    save_mask_file(tmp_path / "masks.safetensors", network.masks)
    result = bench(
        tmp_path / "masks.safetensors", "--device", "cpu", "--batch-sizes", "2", "--output", tmp_path / "table.csv"
    )
    table = pd.read_csv(tmp_path / "table.csv")
    assert table["what"][0] == latency.NETWORK
    assert (table["speed_up"] == table["dense_ms"] / table["sparse_ms"]).all()
    assert set(table["batch"]) == {2}
    assert f"weights of {tmp_path / 'masks.safetensors'} are float32, and are timed in float16\n" in result.output
    assert f"{latency.NETWORK}, batch 2: dense 1.000 ms, 2:4 2.000 ms, 0.50 times as fast" in result.output
    assert "Linear 128 x 128" not in result.output


def test_too_many_images_for_the_gpu_are_one_sentence(network, tmp_path, monkeypatch):
    def run_out(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("maskpro.export.semi_structured.missing_kernels", lambda device: "")
    monkeypatch.setattr("maskpro.export.semi_structured.kernel_compress", lambda dtype, device: lambda weight: weight)
    monkeypatch.setattr(latency, "_timed", run_out)
    save_mask_file(tmp_path / "masks.safetensors", network.masks)
    with pytest.raises(MaskproError, match="batch_sizes is '4 8', for which cpu has too little memory; allowed: smaller"):
        bench(tmp_path / "masks.safetensors", "--device", "cpu", "--batch-sizes", "4 8", "--output", tmp_path / "table.csv")
    assert not (tmp_path / "table.csv").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--dtype", "float32"), "dtype is 'float32'; allowed: float16, bfloat16"),
        (("--batch-sizes", "1 0"), "batch_sizes is '1 0'; allowed: numbers from 1, with blanks between them"),
        (("--batch-sizes", "-1"), "batch_sizes is '-1'; allowed: numbers from 1"),
        (("--batch-sizes", " "), "batch_sizes is ' '; allowed: numbers from 1"),
        (("--output", "there.csv"), "output file there.csv exists already"),
    ],
)
def test_mistakes_are_named_before_the_network_is_read(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.csv").write_text("kept")
    with pytest.raises(MaskproError, match=message):
        bench("absent.safetensors", *options)
