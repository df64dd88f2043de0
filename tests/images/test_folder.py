import os
import pickle
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from pictures import fill, picture
from PIL import Image

from maskpro.errors import MaskproError
from maskpro.images import DataNotFoundError, ImageReading, folder_images
from maskpro.machine.process import say_aside


def read(root, **settings):
    return folder_images(root, **{"resolution": 8, "channels": 3, **settings})


def sizes(splits):
    return [len(splits[name]) for name in ("train", "validation", "test")]


def as_set(images):
    return {image.numpy().tobytes() for image in images}


def pictures(*indices):
    return {np.asarray(picture(index)).transpose(2, 0, 1).tobytes() for index in indices}


def test_all_of_a_flat_folder_are_read_once(tmp_path):
    splits = read(fill(tmp_path / "a", 40))
    assert sizes(splits) == [32, 4, 4]
    assert as_set(torch.cat([splits.train, splits.validation, splits.test])) == pictures(*range(40))
    assert splits.counts.read == {"train": 32, "validation": 4, "test": 4}
    assert splits.counts.splits == "validation and test taken off the training images"


def test_the_choice_of_held_out_images_stays_what_it_was(tmp_path):
    """By the sorted paths and a fixed permutation: the images of experiments that go on."""
    splits = read(fill(tmp_path / "a", 20))
    order = np.random.Generator(np.random.Philox(key=np.array([0, 2**63], dtype=np.uint64))).permutation(20)
    expected = [np.asarray(picture(index)).transpose(2, 0, 1) for index in order]
    assert np.array_equal(splits.validation, expected[:2])
    assert np.array_equal(splits.test, expected[2:4])
    assert np.array_equal(splits.train, expected[4:])


def test_hidden_and_system_files_are_passed_over_and_counted(tmp_path):
    root = fill(tmp_path / "mac", 40)
    (root / "._000.png").write_bytes(b"\x00\x05\x16\x07")
    for name in (".DS_Store", "Thumbs.db", "desktop.ini"):
        (root / name).write_bytes(b"x")
    fill(root / "__MACOSX", 2)
    fill(root / ".thumbnails", 2)
    splits = read(root)
    assert sum(sizes(splits)) == 40
    assert splits.counts.skipped == {"hidden or system files": 6}


def test_all_endings_of_pictures_are_read_and_other_files_counted(tmp_path):
    root = fill(tmp_path / "endings", 20)
    fill(root, 20, suffix=".tif")
    for index in range(20):
        picture(index).save(root / f"{index:03}.JPG", "jpeg")
    (root / "labels.csv").write_text("a,b")
    (root / "README").write_text("x")
    for name in ("a.heic", "b.HEIC", "film.mp4", "paper.pdf"):
        (root / name).write_bytes(b"x")
    splits = read(root)
    assert sum(sizes(splits)) == 60
    assert splits.counts.skipped == {
        "other files (.csv)": 1,
        "other files (.heic)": 2,
        "other files (.mp4)": 1,
        "other files (.pdf)": 1,
        "other files (no ending)": 1,
    }
    assert "2 other files (.heic)" in splits.counts.line()


def test_unreadable_files_are_all_named_at_once_or_left_out(tmp_path):
    root = fill(tmp_path / "truncated", 40)
    for name in ("010.png", "020.png", "030.png"):
        (root / name).write_bytes((root / name).read_bytes()[:60])
    with pytest.raises(DataNotFoundError) as caught:
        read(root)
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"3 of 40 files in {root} can't be read as images: 010.png (")
    assert all(name in message for name in ("020.png", "030.png", "truncated", "--skip-unreadable"))
    splits = read(root, reading=ImageReading(skip_unreadable=True))
    assert splits.counts.skipped == {"unreadable files": 3}
    for name in ("010.png", "020.png", "030.png"):
        (root / name).unlink()
    without = read(root)
    assert all(torch.equal(splits[name], without[name]) for name in ("train", "validation", "test"))


def test_a_bomb_and_a_dangling_link_are_named_with_the_others(tmp_path):
    root = fill(tmp_path / "a", 20)
    Image.new("L", (14_000, 14_000)).save(root / "large.png")
    (root / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (root / "folder.png").mkdir()
    with pytest.raises(
        DataNotFoundError, match=r"2 of 22 files.*gone.png \(.*No such file.*large.png \(more than 178,956,970"
    ):
        read(root)


def test_too_few_images_say_what_was_passed_over(tmp_path):
    root = fill(tmp_path / "a", 9)
    for index in range(30):
        (root / f"{index}.heic").write_bytes(b"x")
    with pytest.raises(
        DataNotFoundError, match=r"9 images below .* \(passed over: 30 other files \(.heic\)\); at least 10 are"
    ):
        read(root)
    for name in ("000.png", "001.png"):
        (root / name).write_bytes(b"broken")
    fill(root, 2, first=20)
    with pytest.raises(DataNotFoundError, match=r"9 images below .*2 unreadable files\); at least 10"):
        read(root, reading=ImageReading(skip_unreadable=True))
    (tmp_path / "images.zip").write_bytes(b"PK")
    with pytest.raises(
        DataNotFoundError, match=r"images.zip is a file, not a folder of images \(an archive is to be unpacked"
    ):
        read(tmp_path / "images.zip")


def test_links_to_class_folders_are_followed_without_loops(tmp_path):
    root = tmp_path / "a"
    fill(root / "cats", 10)
    (root / "dogs").symlink_to(fill(tmp_path / "elsewhere", 10, first=10), target_is_directory=True)
    (root / "cats" / "up").symlink_to(root, target_is_directory=True)
    (root / "again").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    (root / "one.png").symlink_to(fill(tmp_path / "single", 1, first=20) / "020.png")
    splits = read(root)
    assert as_set(torch.cat([splits.train, splits.validation, splits.test])) == pictures(*range(21))
    assert splits.counts.skipped == {"links to folders that were read already": 2}


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_can_not_be_looked_into_is_named(tmp_path):
    root = fill(tmp_path / "a", 20)
    (root / "locked").mkdir(mode=0)
    with pytest.raises(DataNotFoundError, match=r"folder .*locked of --data can't be read"):
        read(root)


@pytest.mark.parametrize("name", ["val", "valid", "validation", "Val", "VALIDATION"])
def test_a_validation_folder_is_used_as_validation(tmp_path, name):
    root = tmp_path / "a"
    fill(root / "Train" / "x", 6)
    fill(root / "Train" / "y", 6, first=6)
    fill(root / name, 4, first=20)
    fill(root / "TEST", 3, first=30)
    splits = read(root)
    assert as_set(splits.train) == pictures(*range(12))
    assert as_set(splits.validation) == pictures(*range(20, 24))
    assert as_set(splits.test) == pictures(30, 31, 32)
    assert splits.counts.splits == ""
    assert splits.counts.line() == (
        "19 images read (12 train, 4 validation, 3 test); passed over: nothing; converted: nothing"
    )


def test_missing_splits_are_taken_off_the_training_images(tmp_path):
    root = tmp_path / "a"
    fill(root / "train", 20)
    fill(root / "val", 5, first=20)
    splits = read(root)
    assert sizes(splits) == [18, 5, 2]
    assert as_set(splits.validation) == pictures(*range(20, 25))
    assert splits.counts.splits == "test taken off the training images"
    fill(tmp_path / "b" / "train", 20)
    splits = read(tmp_path / "b")
    assert sizes(splits) == [16, 2, 2]
    assert splits.counts.splits == "validation and test taken off the training images"
    fill(tmp_path / "c" / "train", 20)
    fill(tmp_path / "c" / "test", 5, first=20)
    splits = read(tmp_path / "c")
    assert sizes(splits) == [18, 2, 5]
    assert splits.counts.splits == "validation taken off the training images"


def test_images_beside_the_splits_are_counted_and_not_read(tmp_path):
    root = tmp_path / "a"
    fill(root / "train", 10)
    fill(root / "test", 5, first=10)
    fill(root / "extra", 3, first=20)
    fill(root, 2, first=30)
    splits = read(root)
    assert sum(sizes(splits)) == 15
    assert splits.counts.skipped == {"images beside test/, train/": 5}


def test_splits_that_are_ambiguous_or_lack_train_are_refused(tmp_path):
    for name in ("train", "val", "valid"):
        fill(tmp_path / "a" / name, 5)
    with pytest.raises(DataNotFoundError, match="holds both val/ and valid/; allowed: one folder for validation images"):
        read(tmp_path / "a")
    for name in ("val", "test"):
        fill(tmp_path / "b" / name, 5)
    with pytest.raises(DataNotFoundError, match="holds test/ and val/ but no train/; allowed: train/ beside them"):
        read(tmp_path / "b")
    fill(tmp_path / "c" / "train", 1)
    fill(tmp_path / "c" / "test", 5)
    with pytest.raises(DataNotFoundError, match=r"1 train images below .*; at least 2 are needed"):
        read(tmp_path / "c")
    fill(tmp_path / "d" / "train", 4)
    with pytest.raises(DataNotFoundError, match=r"4 images below .*; at least 10 are needed"):
        read(tmp_path / "d")


@pytest.mark.parametrize(
    ("folders", "named"),
    [
        (("images/train", "images/val", "labels"), "images/train/ and images/val/"),
        (("cats/good/Train", "cats/test", "dogs/train", "dogs/test"), "cats/good/Train/ and cats/test/"),
        (("cats/val", "cats/test", "dogs/val"), "cats/test/ and cats/val/"),
    ],
    ids=["labels beside", "a folder per class", "without train"],
)
def test_splits_further_down_are_not_pooled(tmp_path, folders, named):
    for index, name in enumerate(folders):
        fill(tmp_path / name, 0 if name == "labels" else 12, first=12 * index)
    with pytest.raises(DataNotFoundError, match=f"{tmp_path} holds {named} further down, whose images would be read tog"):
        read(tmp_path)


def test_a_class_may_have_the_name_of_a_split(tmp_path):
    fill(tmp_path / "land" / "train", 12)
    fill(tmp_path / "water" / "boat", 8, first=12)
    assert sizes(read(tmp_path)) == [16, 2, 2]


def test_the_one_folder_of_an_unpacked_archive_is_looked_into(tmp_path):
    inner = tmp_path / "faces" / "faces-1.0"
    fill(inner / "train", 20)
    fill(inner / "test", 5, first=20)
    assert sizes(read(tmp_path / "faces")) == [18, 2, 5]
    (tmp_path / "faces" / "README.md").write_text("documents beside it are no images")
    assert sizes(read(tmp_path / "faces")) == [18, 2, 5]
    fill(tmp_path / "one" / "cats", 20)
    assert sizes(read(tmp_path / "one")) == [16, 2, 2]


def test_what_was_converted_is_counted_and_said(tmp_path):
    root = fill(tmp_path / "a", 10)
    for index in range(10, 13):
        picture(index, size=20).save(root / f"{index}.png")
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(root / "grey.png")
    said = []
    splits = read(root, reading=ImageReading(resize="lanczos", crop="none"), say=said.append)
    assert splits.counts.converted == {"reduced": 3, "scaled from 16 bits": 1}
    assert splits.counts.describe()["reading"] == {"resize": "lanczos", "crop": "none", "background": "white"}
    assert said == [f"{root}: {splits.counts.line()}"]
    assert said[0].endswith("passed over: nothing; converted: 3 reduced, 1 scaled from 16 bits")


def test_progress_is_said_in_lines_where_there_is_no_terminal(tmp_path, monkeypatch):
    monkeypatch.setattr("maskpro.images.folder._SECONDS_BETWEEN_LINES", 0)
    said = []
    read(fill(tmp_path / "a", 12), say=said.append)
    assert len(said) == 12
    assert said[5].startswith("reading images: 6 of 12, about ")


def test_images_are_read_by_a_process_without_a_standard_error(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", None)
    root = fill(tmp_path / "a", 12)
    assert sum(read(root, say=say_aside).counts.read.values()) == 12


def arrays_in(path):
    return [file for file in path.iterdir() if file.suffix == ".npy"]


def test_a_large_set_lies_in_a_file_that_all_processes_map(tmp_path):
    root, cache = fill(tmp_path / "a", 40), tmp_path / "cache"
    plain = read(root)
    large = read(root, cache=cache, in_memory_bytes=1000)
    for name in ("train", "validation", "test"):
        assert torch.equal(plain[name], large[name])
    (file,) = arrays_in(cache)
    sent = pickle.dumps(large, protocol=5)
    assert len(sent) < 4000 < plain.train.numel()
    arrived = pickle.loads(sent)
    assert all(torch.equal(arrived[name], large[name]) for name in ("train", "validation", "test"))
    assert arrived.counts == large.counts
    assert arrived.train.untyped_storage().nbytes() == large.train.untyped_storage().nbytes() == 40 * 3 * 64
    written = file.stat().st_mtime_ns
    again = read(root, cache=cache, in_memory_bytes=1000)
    assert torch.equal(again.train, plain.train)
    assert again.counts == large.counts
    assert file.stat().st_mtime_ns == written, "not made again"


def test_other_images_or_settings_make_another_file(tmp_path):
    root, cache = fill(tmp_path / "a", 20), tmp_path / "cache"
    settings = {"cache": cache, "in_memory_bytes": 0}
    read(root, **settings)
    read(root, **settings, resolution=16)
    read(root, **settings, resolution=16, reading=ImageReading(resize="box"))
    read(root, **settings, resolution=16, reading=ImageReading(resize="box", skip_unreadable=True))
    assert len(arrays_in(cache)) == 3
    picture(99).save(root / "000.png")
    changed = read(root, **settings)
    assert len(arrays_in(cache)) == 4
    assert as_set(torch.cat([changed.train, changed.validation, changed.test])) == pictures(99, *range(1, 20))


def test_a_pickle_leaves_out_images_that_were_left_out(tmp_path):
    root = fill(tmp_path / "a", 40)
    for settings in ({}, {"cache": tmp_path / "cache", "in_memory_bytes": 0}):
        splits = read(root, **settings)
        splits = replace(splits, test=splits.test[:0])
        sent = pickle.dumps(splits, protocol=5)
        assert all(image.tobytes() not in sent for image in read(root).test.numpy())
        arrived = pickle.loads(sent)
        assert len(arrived.test) == 0
        assert torch.equal(arrived.train, splits.train)
    altered = replace(splits, train=splits.train.clone() + 1)
    assert torch.equal(pickle.loads(pickle.dumps(altered)).train, altered.train)


def test_a_machine_that_lacks_the_file_makes_it_again_or_says_so(tmp_path, monkeypatch):
    root, cache = fill(tmp_path / "a", 20), tmp_path / "cache"
    sent = pickle.dumps(read(root, cache=cache, in_memory_bytes=0))
    expected = read(root)
    for file in cache.iterdir():
        file.unlink()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "elsewhere"))
    arrived = pickle.loads(sent)
    assert torch.equal(arrived.train, expected.train)
    assert arrived.stored.path.is_relative_to(tmp_path / "elsewhere")
    picture(99).save(root / "000.png")
    with pytest.raises(MaskproError, match=r"can't be seen on node .*, and the images that are read there are others"):
        pickle.loads(sent)
    root.rename(tmp_path / "b")
    with pytest.raises(MaskproError, match=r"can't be seen on node .*no folder of images at .*--results-dir"):
        pickle.loads(sent)


def test_a_file_that_was_left_half_made_is_made_again(tmp_path):
    root, cache = fill(tmp_path / "a", 20), tmp_path / "cache"
    settings = {"cache": cache, "in_memory_bytes": 0}
    whole = read(root, **settings)
    next(cache.glob("*.json")).unlink()
    assert torch.equal(read(root, **settings).train, whole.train)
    (root / "000.png").write_bytes(b"broken")
    with pytest.raises(DataNotFoundError, match="1 of 20 files"):
        read(root, **settings)
    assert len(list(cache.iterdir())) == 2, "nothing half-written is left"


def test_without_room_for_a_large_set_the_folder_is_named(tmp_path, monkeypatch):
    root = fill(tmp_path / "a", 20)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=100))
    with pytest.raises(MaskproError, match=r"images need 0.0 GB in .*cache, which has 0.0 GB; name another --results"):
        read(root, cache=tmp_path / "cache", in_memory_bytes=0)


def test_a_large_set_without_a_cache_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    root = fill(tmp_path / "a", 20)
    large = read(root, in_memory_bytes=0)
    assert torch.equal(large.train, read(root).train)
    assert list((tmp_path / "temporary").iterdir()) == []
    assert torch.equal(pickle.loads(pickle.dumps(large)).test, large.test)


@pytest.mark.parametrize("settings", [{}, {"in_memory_bytes": 0}], ids=["in memory", "stored"])
def test_a_link_to_nowhere_is_named_or_passed_over(tmp_path, settings):
    root = fill(tmp_path / "a", 20)
    (root / "x.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataNotFoundError, match=r"1 of 21 files in .* can't be read as images: x.png \(.*No such file"):
        read(root, cache=tmp_path / "cache", **settings)
    splits = read(root, cache=tmp_path / "cache", reading=ImageReading(skip_unreadable=True), **settings)
    assert sum(splits.counts.read.values()) == 20


def test_a_pipe_with_the_name_of_an_image_is_passed_over(tmp_path):
    """To read it would never end."""
    root = fill(tmp_path / "a", 20)
    os.mkfifo(root / "x.png")
    assert read(root).counts.skipped == {"pipes, sockets or devices": 1}


@pytest.mark.parametrize(
    ("name", "shown"), [(b"a\nb.png", r"'a\nb.png'"), (b"\xff.png", r"'\udcff.png'"), ("ä ☃.png".encode(), "ä ☃.png")]
)
def test_a_message_stays_one_line_whatever_a_file_is_called(tmp_path, name, shown):
    root = fill(tmp_path / "a", 20)
    Path(os.fsdecode(os.fsencode(root) + b"/" + name)).write_bytes(b"broken")
    with pytest.raises(DataNotFoundError) as caught:
        read(root)
    assert f"can't be read as images: {shown} (not an image that Pillow reads); remove" in str(caught.value)


def test_pointers_of_git_lfs_are_known(tmp_path):
    root = fill(tmp_path / "a", 20)
    (root / "x.png").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:ab\nsize 3\n")
    with pytest.raises(DataNotFoundError, match=r"x.png \(a pointer of Git LFS, to be fetched with git lfs pull\)"):
        read(root)


@pytest.mark.parametrize(
    ("name", "target", "said"),
    [
        ("val", "train", r"train is, or lies in, the folder of .*val; allowed: folders of splits apart from each other"),
        ("test", "train/cats", r"test is, or lies in, the folder of .*train; allowed"),
        ("test", ".", r"train is, or lies in, the folder of .*test; allowed"),
    ],
)
def test_splits_that_share_images_by_links_are_refused(tmp_path, name, target, said):
    """Held-out images would be those that are learned from."""
    root = tmp_path / "a"
    fill(root / "train" / "cats", 20)
    (root / name).symlink_to(target)
    with pytest.raises(DataNotFoundError, match=said):
        read(root)


def test_held_out_links_to_training_images_are_passed_over(tmp_path):
    root = tmp_path / "a"
    fill(root / "train", 20)
    fill(root / "val", 3, first=30)
    fill(root / "test", 3, first=40)
    for index in range(4):
        (root / "val" / f"link{index}.png").symlink_to(root / "train" / f"00{index}.png")
    (root / "test" / "link.png").symlink_to(root / "val" / "030.png")
    fill(root / "train" / "cats", 2, first=60)
    (root / "val" / "cats").symlink_to("../train/cats")
    (root / "train" / "elsewhere.png").symlink_to(fill(tmp_path / "b", 1, first=50) / "050.png")
    splits = read(root)
    assert sizes(splits) == [23, 3, 3]
    assert as_set(splits.validation) == pictures(30, 31, 32)
    assert splits.counts.skipped == {"links to images of another split": 7}
