"""What the stages of benchmarks/cifar10 rely on: the workload's own splits, runs that go on, rows that survive a kill."""

import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from shared_fixtures import CPU, seeded_unet
from torchvision.transforms.v2.functional import to_pil_image

from benchmarks import mask_quality
from benchmarks.cifar10 import train_dense, train_features
from benchmarks.cifar10.common import choose_device, image_folder, workload_images
from benchmarks.cifar10.labelled import labelled_images
from benchmarks.cifar10.networks import DenoiserTraining, ema_decay, learning_rate, load_network, make_network
from benchmarks.cifar10.search import make_plan
from benchmarks.cifar10.time_line import spent, time_line
from benchmarks.cifar10.train_dense import export
from benchmarks.cifar10.train_features import Features, augment
from benchmarks.cifar10.train_features import export as export_features
from benchmarks.mask_methods import LEARNED, RIVALS, Job, Setting, last_shortcuts
from benchmarks.resumable import Deadline, Rows
from maskpro.errors import MaskproError
from maskpro.workloads import open_workload


def write_images(folder, splits, count=12):
    generator = torch.Generator().manual_seed(0)
    for split in splits:
        for label in range(2):
            for number in range(count):
                path = folder / split / f"class{label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                to_pil_image(torch.randint(256, (3, 32, 32), dtype=torch.uint8, generator=generator)).save(path)
    return folder


@pytest.mark.parametrize("splits", [("train", "test"), ("train",)], ids=str)
def test_images_are_the_workload_s(tmp_path, splits, capsys):
    folder = write_images(tmp_path / "images", splits)
    model = tmp_path / "model"
    model.mkdir()
    export(make_training(), DDPMScheduler(), "tiny", model)
    expected = open_workload("cifar10", model=str(model), data=folder).images
    for _ in range(2):  # read, then from the cache
        found = workload_images(folder, tmp_path / "work", make_network("tiny", seed=0))
        for split in ("train", "validation", "test"):
            torch.testing.assert_close(found[split], expected[split], rtol=0, atol=0)
    said = capsys.readouterr().out
    assert ("no test/" in said) == (splits == ("train",))
    assert said.count("read ") == 1


@pytest.mark.parametrize("splits", [("train", "test"), ("train",)], ids=str)
def test_labels_are_the_folders(tmp_path, splits):
    folder = tmp_path / "images"
    for split in splits:
        for label, value in enumerate((10, 200)):
            for number in range(15):
                path = folder / split / f"class{label}" / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                to_pil_image(torch.full((3, 32, 32), value, dtype=torch.uint8)).save(path)
    found = labelled_images(folder, tmp_path / "work")
    assert sum(map(len, found.images.values())) == 30 * len(splits)
    for split, images in found.images.items():
        assert len(images) >= 3
        assert (images[:, 0, 0, 0] > 100).long().tolist() == found.labels[split].tolist()


def test_all_labelled_files_that_cannot_be_read_are_named_and_hidden_ones_passed_over(tmp_path):
    folder = write_images(tmp_path / "images", ("train", "test"), count=3)
    (folder / "train" / ".cache").mkdir()
    (folder / "train" / ".cache" / "0.png").write_bytes(b"")
    (folder / "train" / "class0" / "._0.png").write_bytes(b"")
    assert len(labelled_images(folder, tmp_path / "work").images["train"]) == 6
    broken = [folder / "train" / "class0" / "1.png", folder / "train" / "class1" / "2.png"]
    for path in broken:
        path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(MaskproError) as caught:
        labelled_images(folder, tmp_path / "other")
    assert all(f"{path.parent.name}/{path.name} (" in str(caught.value) for path in broken)
    assert "\n" not in str(caught.value)


def test_zip_files_are_unpacked_once_into_one_folder(tmp_path):
    whole = write_images(tmp_path / "source", ("train", "test"))
    archives = []
    for split in ("train", "test"):
        archives.append(tmp_path / f"{split}.zip")
        with zipfile.ZipFile(archives[-1], "w") as archive:
            for path in sorted((whole / split).rglob("*.png")):
                archive.write(path, path.relative_to(whole))
    work = tmp_path / "work"
    (work / ".images.x8k_2cdw" / "train").mkdir(parents=True)  # of a stage that was killed
    folder = image_folder(archives, work, tiny=False)
    assert [path.name for path in work.iterdir()] == ["images"]
    assert len(list(folder.rglob("*.png"))) == 48
    assert image_folder(archives, work, tiny=False) == folder
    with pytest.raises(MaskproError, match="unpacked from other files"):
        image_folder(archives[:1] * 2, work, tiny=False)


def test_a_missing_or_broken_zip_file_is_named(tmp_path):
    broken = tmp_path / "train.zip"
    with zipfile.ZipFile(broken, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("train/a/0.jpg", bytes(range(256)) * 40)
    content = bytearray(broken.read_bytes())
    content[60:80] = bytes(20)
    broken.write_bytes(content)
    for path in (tmp_path / "nowhere.zip", broken):
        with pytest.raises(MaskproError, match=path.name):
            image_folder([path], tmp_path / "work", tiny=False)
        assert not (tmp_path / "work" / "images").exists()
    with pytest.raises(MaskproError, match="images is missing"):
        image_folder(None, tmp_path / "work", tiny=False)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_a_rehearsal_is_run():
    assert choose_device(tiny=True) == CPU
    with pytest.raises(MaskproError, match=r"no CUDA GPU.*--tiny"):
        choose_device(tiny=False)


def make_training():
    images = torch.randint(256, (32, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return DenoiserTraining(
        make_network("tiny", seed=0),
        DDPMScheduler(),
        images,
        batch_size=4,
        seed=0,
        device=CPU,
        precision="float32",
        compiled=False,
    )


def test_a_training_that_goes_on_equals_one_that_was_not_interrupted(tmp_path):
    whole = make_training()
    for number in range(4):
        whole.step(number / 4)
    first = make_training()
    for number in range(2):
        first.step(number / 4)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = make_training()
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for number in range(2, 4):
        second.step(number / 4)
    for mine, other in zip(second.averaged().values(), whole.averaged().values(), strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=0)


def test_the_network_learns():
    training = make_training()
    losses = [training.step(0.3).item() for _ in range(40)]
    assert sum(losses[-8:]) < 0.9 * sum(losses[:8])


def test_averaged_weights_are_a_power_function_of_the_steps():
    # The average with decays (1 - 1/t)^(g+1) weighs step k by about k^g: its mean step is (g+1)/(g+2) of the last.
    average, steps = 0.0, 2000
    for step in range(1, steps + 1):
        average += (1 - ema_decay(step)) * (step - average)
    assert average / steps == pytest.approx((16.97 + 1) / (16.97 + 2), rel=0.01)
    assert ema_decay(1) == 0


def test_the_learning_rate_rises_and_ends_at_zero():
    rates = [learning_rate(number / 100) for number in range(101)]
    assert rates[0] == 0
    assert max(rates) == pytest.approx(1.0)
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert rates[-1] == pytest.approx(0.0)


def test_a_network_that_had_no_time_for_a_step_is_not_written(tmp_path):
    images = write_images(tmp_path / "images", ("train", "test"))
    with pytest.raises(MaskproError, match="went by before the first step"):
        train_dense.main(images=[images], work=tmp_path / "work", minutes=1e-4, tiny=True)
    assert not (tmp_path / "work" / "ddpm_cifar10_small").exists()
    assert not (tmp_path / "work" / "train_dense.pt").exists()
    with pytest.raises(MaskproError, match="went by before the first step"):
        train_features.main(images=[images], work=tmp_path / "work", minutes=1e-4, tiny=True)
    assert not (tmp_path / "work" / "features.pt").exists()


def test_the_folder_holds_the_averaged_weights_rounded_to_float16(tmp_path):
    training = make_training()
    training.step(0.5)
    export(training, DDPMScheduler(), "tiny", tmp_path)
    images = write_images(tmp_path / "images", ("train", "test"))
    found = dict(open_workload("cifar10", model=str(tmp_path), data=images).model.named_parameters())
    for name, value in training.averaged().items():
        assert found[name].dtype == torch.float32
        torch.testing.assert_close(found[name], value.half().float(), rtol=0, atol=0)


def test_a_large_network_is_written_in_shards_that_load_as_the_same_float32(tmp_path, monkeypatch):
    monkeypatch.setattr(train_dense, "_SHARD", "10KB")
    training = make_training()
    export(training, DDPMScheduler(), "tiny", tmp_path)
    shards = list((tmp_path / "unet").glob("*.safetensors"))
    assert len(shards) > 1
    found = dict(load_network(tmp_path)[0].named_parameters())
    for name, value in training.averaged().items():
        torch.testing.assert_close(found[name], value.half().float(), rtol=0, atol=0)


def test_the_features_file_maps_any_number_of_uint8_images(tmp_path):
    features = Features(2).eval()
    path = tmp_path / "features.pt"
    export_features(features, path)
    with pytest.warns(FutureWarning, match="deprecated"):
        loaded = torch.jit.load(path)
    images = torch.randint(256, (5, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = loaded(images)
        torch.testing.assert_close(found, features(images))
    assert found.shape == (5, 16)
    assert found.dtype == torch.float32


def test_augmented_images_are_moved_and_flipped_ones(generator):
    image = torch.randint(1, 256, (3, 8, 8), dtype=torch.uint8, generator=generator)
    padded = [torch.nn.functional.pad(one, (4,) * 4) for one in (image, image.flip(2))]
    allowed = {one[:, y : y + 8, x : x + 8].numpy().tobytes() for one in padded for y in range(9) for x in range(9)}
    for found in augment(image.expand(50, -1, -1, -1), generator):
        assert found.contiguous().numpy().tobytes() in allowed


def test_rows_survive_a_torn_line(tmp_path):
    rows = Rows(tmp_path / "rows.jsonl")
    assert rows.read() == []
    rows.add({"a": 1})
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"a": 2')
    assert rows.read() == [{"a": 1}]
    rows.add({"a": 3})
    assert rows.read() == [{"a": 1}, {"a": 3}]


def test_a_deadline_counts_what_earlier_sessions_took():
    times = iter([100.0, 107.0, 130.0])
    deadline = Deadline(0.5, spent=10.0, clock=lambda: next(times))
    assert deadline.spent == pytest.approx(17.0)
    assert deadline.left == pytest.approx(-10.0)


def test_a_time_line_tells_phases_of_a_killed_and_a_resumed_session(tmp_path):
    events = Rows(tmp_path / "events.jsonl")
    for time, session, kind, more in [
        (0, 1, "launch", {}),
        (10, 1, "experiment", {}),
        (10, 1, "session", {"trial": None}),
        (14, 1, "trial", {"trial": 1}),
        (20, 1, "report", {"trial": 1}),
        (25, 1, "device", {"resident_mib": 50.0, "gpu_percent": 80.0, "gpu_mib": 900.0}),
        (30, 1, "report", {"trial": 1}),
        (31, 1, "killed", {"signal": 9}),
        (32, 1, "exit", {"status": -9}),
        (40, 2, "launch", {}),
        (48, 2, "experiment", {}),
        (55, 2, "go_on", {"trial": 1}),
        (60, 2, "report", {"trial": 1}),
        (70, 2, "checkpoint", {"trial": 1}),
        (90, 2, "results", {}),
        (95, 2, "report", {}),
        (96, 2, "exit", {"status": 0}),
    ]:
        events.add({"time": time, "session": session, "kind": kind, **more})
    first, second = time_line(events)
    assert first["ended"] == "killed"
    assert (first["start"], first["shared values"], first["first report"], first["trials"]) == (10, 4, 6, 10)
    assert first["GPU busy in trials, %"] == 80
    phases = {name: second[name] for name in ("start", "shared values", "first report", "trials", "evaluation", "report")}
    assert phases == dict(zip(phases, (8, 7, 5, 10, 20, 6), strict=True))
    assert spent(events) == 32 + 56


def test_a_plan_grows_with_the_minutes_and_the_machine():
    small, large = make_plan(90, (500, 5_000), "bfloat16"), make_plan(600, (5_000, 30_000), "bfloat16")
    assert small.num_trials == 6
    assert large.num_trials == 12
    assert small.max_samples < large.max_samples <= 200_000
    assert 512 <= small.num_generated < large.num_generated <= 10_000


def test_shortcuts_of_the_last_up_block(digits):
    assert last_shortcuts(digits.model) == (
        "up_blocks.1.resnets.0.conv_shortcut",
        "up_blocks.1.resnets.1.conv_shortcut",
    )
    assert last_shortcuts(seeded_unet(block_out_channels=(8, 16, 16), down_block_types=("DownBlock2D",) * 3,
                                      up_block_types=("UpBlock2D",) * 3))[0].startswith("up_blocks.2.")  # fmt: skip


def test_every_method_can_be_named():
    """They stand between commas in `--methods`."""
    assert not [name for name in LEARNED if "," in name]
    assert set(RIVALS) <= set(LEARNED)


class Threads(ThreadPoolExecutor):
    def __init__(self, count, mp_context, initializer):
        super().__init__(count)


def test_masks_that_were_made_are_not_made_again_and_none_is_begun_too_late(tmp_path, monkeypatch):
    made = []

    def run_job(job, setting):
        made.append((job.method, job.seed, job.cost))
        now[0] += 10.0
        row = {"method": job.method, "pattern": job.pattern, "seed": job.seed, "cost": job.cost, "loss": 1.0}
        row |= {"fidelity": 0.6 if job.method == RIVALS[1] else 0.5, "fidelity_error": 0.01}
        evaluations = job.evaluations if job.settings else 0
        return row | {"recovery": 0.5, "seconds": 2.0, "evaluations": evaluations, "wall_seconds": 10.0}

    now = [0.0]
    monkeypatch.setattr(mask_quality, "run_job", run_job)
    monkeypatch.setattr(mask_quality, "ProcessPoolExecutor", Threads)
    rows, tables = Rows(tmp_path / "rows.jsonl"), []

    def measure(minutes):
        made.clear()
        deadline = Deadline(minutes, clock=lambda: now[0])
        mask_quality.measure(
            Setting(workload="digits"),
            patterns=("2:4",),
            seeds=range(5, 7),
            evaluations=1_000,
            rows=rows,
            deadline=deadline,
            write=tables.append,
        )
        return list(made)

    first = measure(65 / 60)  # six masks of ten seconds; a seventh would end after it
    assert len(first) == 6
    assert len(tables[-1]) == 6
    second = measure(100)
    assert not set(first) & set(second)
    per_seed = 3 + len(LEARNED) + 1  # random, Wanda, SparseGPT; the learned ones; the nearest rival in as many seconds
    assert {method for method, _, cost in second if cost == "equal seconds"} == {RIVALS[1]}
    assert len(first) + len(second) == 2 + 2 * per_seed
    assert measure(100) == []
    assert all(isinstance(Job(method=method, pattern="2:4", seed=seed), Job) for method, seed, _ in second)
