"""Whole or absent files: on a disk that is full, and under names that can't be written."""

import errno
import os
from pathlib import Path

import pytest

from maskpro.errors import MaskproError
from maskpro.files import atomic_folder, atomic_path, check_new, read_json, replaced_folder
from maskpro.schedule import lock


class SafetensorError(Exception):
    """As that of safetensors, which is no OSError."""


FULL = [
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),  # of a write, which names no file
    OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), ".x.a1b2c3d4"),
    SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    RuntimeError("[enforce fail at inline_container.cc:664] . PytorchStreamWriter failed writing file data/0"),
]


@pytest.mark.parametrize("error", FULL)
@pytest.mark.parametrize("make", [atomic_path, atomic_folder, replaced_folder])
def test_a_full_disk_is_told_of_with_the_name_that_the_user_knows(tmp_path, make, error):
    with pytest.raises(OSError, match="No space left on device") as caught, make(tmp_path / "x"):
        raise error
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "x"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [atomic_path, atomic_folder, replaced_folder])
def test_a_quota_is_told_from_a_full_disk_and_other_errors_are_left_alone(tmp_path, make):
    quota = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    with pytest.raises(OSError, match="quota") as caught, make(tmp_path / "x"):
        raise quota
    assert (caught.value.errno, caught.value.filename) == (errno.EDQUOT, str(tmp_path / "x"))
    other = PermissionError(errno.EACCES, os.strerror(errno.EACCES), "elsewhere")
    with pytest.raises(PermissionError) as caught, make(tmp_path / "x"):
        raise other
    assert caught.value is other


def test_a_lock_that_finds_no_room_is_named(tmp_path, monkeypatch):
    def full(handle, content):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(lock.os, "write", full)
    with pytest.raises(OSError, match="No space left on device") as caught, lock.hold_lock(tmp_path):
        pass
    assert Path(caught.value.filename) == tmp_path / lock.LOCK_FILE


@pytest.mark.parametrize("target", ["nowhere", "link"])
def test_a_link_to_nothing_is_no_free_name(tmp_path, target):
    """A folder can't be renamed to it, which would be noticed after hours."""
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(MaskproError, match=r"output folder .*link exists already"):
        check_new(tmp_path / "link", "output folder")
    with pytest.raises(MaskproError, match=r"output folder .*below can't be written \("):
        check_new(tmp_path / "link" / "below", "output folder")


@pytest.mark.parametrize(("length", "suffix"), [(246, ""), (256, ""), (245, ".npz")])
def test_a_name_too_long_for_the_temporary_sibling_is_refused_at_once(tmp_path, length, suffix):
    path = tmp_path / ("n" * (length - len(suffix)) + suffix)
    with pytest.raises(MaskproError, match=r"can't be written \(File name too long\)"):
        check_new(path, "output")


@pytest.mark.parametrize(("length", "suffix"), [(245, ""), (241, ".npz")])
def test_the_longest_names_can_be_written(tmp_path, length, suffix):
    path = tmp_path / ("n" * (length - len(suffix)) + suffix)
    check_new(path, "output")
    with atomic_path(path) as temporary:
        temporary.write_text("x")
    assert path.read_text() == "x"


def test_json_with_a_byte_order_mark_is_read(tmp_path):
    (tmp_path / "a.json").write_bytes(b'\xef\xbb\xbf{"a": 1}')
    assert read_json(tmp_path / "a.json") == {"a": 1}
