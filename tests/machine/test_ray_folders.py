"""Ray's files on machines whose usual places can't be written."""

import os
from pathlib import Path

import pytest

from maskpro.errors import MaskproError
from maskpro.machine import ray_folders
from maskpro.machine.ray_folders import provide_token, ray_folder


@pytest.fixture
def short(tmp_path):
    """A folder with a short path, as sockets need."""
    folder = Path(f"/tmp/m{os.getpid()}")
    folder.symlink_to(tmp_path)
    yield folder
    folder.unlink()


def test_rays_own_choice_is_left_to_it_where_it_can_be_written(short):
    assert ray_folder({"RAY_TMPDIR": str(short)}) == (None, "")
    assert ray_folder({"TMPDIR": str(short), "HOME": "/proc/nowhere"}) == (None, "")


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
@pytest.mark.parametrize(
    ("place", "why"), [("/proc/nowhere", "can't be written"), ("/tmp/" + "long" * 20, "too long a path")]
)
def test_another_folder_is_taken_and_said_where_the_named_one_will_not_do(name, place, why):
    folder, note = ray_folder({name: place})
    assert folder is not None
    assert folder.is_dir()
    assert folder.stat().st_uid == os.getuid()
    assert len(str(folder)) <= 43
    assert note.startswith(f"{name} is {place}, which ")
    assert why in note
    assert str(folder) in note
    assert not Path(place).exists()


def test_the_variable_is_named_where_no_folder_will_do(monkeypatch):
    monkeypatch.setattr(ray_folders, "_others", lambda environment: iter([Path("/proc/other")]))
    with pytest.raises(
        MaskproError, match=r"RAY_TMPDIR is /proc/nowhere, which can't be written .* allowed: a folder in RAY_TMPDIR"
    ):
        ray_folder({"RAY_TMPDIR": "/proc/nowhere"})


def test_a_folder_of_somebody_else_is_not_used(short, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert "somebody else" in ray_folders._problem(short / "ray-12345", private=True)


def test_a_home_that_can_not_be_written_needs_no_token_file(tmp_path, monkeypatch):
    for home in ("/proc/nowhere", "/dev/null"):
        monkeypatch.setenv("HOME", home)
        environment = {}
        provide_token(environment)
        assert len(environment["RAY_AUTH_TOKEN"]) == 64
    monkeypatch.setattr(Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    environment = {}
    provide_token(environment)
    assert environment


def test_a_token_that_there_is_or_may_be_made_is_rays_own_affair(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for environment in (
        {},
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_TOKEN": "x"},
        {"RAY_AUTH_TOKEN_PATH": "/proc/nowhere"},
    ):
        before = dict(environment)
        provide_token(environment)
        assert environment == before
    (tmp_path / ".ray" / "auth_token").write_text("token")
    provide_token(environment := {})
    assert environment == {}
    (tmp_path / ".ray" / "auth_token").write_text("")
    provide_token(environment)
    assert environment.keys() == {"RAY_AUTH_TOKEN"}
