"""How every command ends where the machine fails it."""

import errno
import os

import pytest
import torch
import typer

from maskpro.cli import run_app
from maskpro.errors import MaskproError
from maskpro.files import check_new
from maskpro.pipeline import parse_device


def application(error):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command():
        raise error

    return app


@pytest.fixture(autouse=True)
def _no_arguments(monkeypatch):
    monkeypatch.setattr("sys.argv", ["maskpro"])


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize(("names", "named"), [(("masks.safetensors",), "masks.safetensors"), ((), "a file or the output")])
def test_a_full_disk_ends_a_command_in_one_sentence(capsys, number, names, named):
    with pytest.raises(SystemExit) as caught:
        run_app(application(OSError(number, os.strerror(number), *names)))
    assert caught.value.code == 2
    expected = f"error: {named} can't be written ({os.strerror(number)}); allowed: a disk with room\n"
    assert capsys.readouterr().err == expected


def test_other_errors_of_the_system_are_not_hidden():
    with pytest.raises(IsADirectoryError):
        run_app(application(IsADirectoryError(errno.EISDIR, "is a directory")))


def test_a_gpu_without_room_for_one_sample_ends_a_command_in_one_sentence(capsys):
    with pytest.raises(SystemExit) as caught:
        run_app(application(torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate 2 GiB")))
    assert caught.value.code == 2
    expected = (
        "error: out of memory with one sample at a time (CUDA out of memory. Tried to allocate 2 GiB); allowed: another "
    )
    assert capsys.readouterr().err == f"{expected}--device\n"
    with pytest.raises(RuntimeError, match="a fault of ours"):
        run_app(application(RuntimeError("a fault of ours")))


@pytest.mark.parametrize("below", ["file/out", "/proc/out"])
def test_an_output_that_cant_be_written_is_told_of_at_once(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(MaskproError, match=r"output folder .*out can't be written \(.*\); name another one"):
        check_new(tmp_path / below, "output folder")
    check_new(tmp_path / "a" / "b", "output folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["mps", "meta", "xpu", "vulkan", "gpu", ""])
def test_devices_that_nothing_is_made_for_are_refused(name):
    with pytest.raises(MaskproError, match=f"device is '{name}'; allowed: auto, cpu, cuda or cuda:0"):
        parse_device(name)
