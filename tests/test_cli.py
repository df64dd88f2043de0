"""How every command ends where the machine fails it."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import typer
from safetensors import SafetensorError
from typer.testing import CliRunner

from maskpro.cli import app
from maskpro.commands.running import run_app
from maskpro.errors import MaskproError
from maskpro.files import check_new, write_text
from maskpro.machine.hardware import parse_device


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


@pytest.mark.parametrize(
    ("number", "allowed"),
    [
        (errno.EACCES, "files and folders that this user may read and write"),
        (errno.EROFS, "files and folders that this user may read and write"),
        (errno.ENAMETOOLONG, "shorter names of files and folders"),
        (errno.EMFILE, "more open files, such as by ulimit -n 4096"),
        (errno.EIO, "a disk or a network share that answers"),
        (errno.ESTALE, "a disk or a network share that answers"),
        (errno.EAGAIN, "a machine with more memory and processes to spare"),
    ],
)
def test_what_the_system_refuses_at_any_moment_is_one_sentence(capsys, number, allowed):
    with pytest.raises(SystemExit) as caught:
        run_app(application(OSError(number, os.strerror(number), "report.html")))
    assert caught.value.code == 2
    expected = f"error: report.html can't be opened or written ({os.strerror(number)}); allowed: {allowed}\n"
    assert capsys.readouterr().err == expected


def test_a_limit_of_file_sizes_and_missing_memory_are_one_sentence(capsys):
    for error, expected in (
        (
            OSError(errno.EFBIG, os.strerror(errno.EFBIG), "best"),
            "best can't be written (File too large); allowed: larger files, such as by ulimit -f unlimited",
        ),
        (MemoryError(), "out of memory (none was to be had); allowed: a machine or a limit (ulimit -v) with more"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
            "out of memory ([enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory); allowed: a "
            "machine or a limit (ulimit -v) with more",
        ),
    ):
        with pytest.raises(SystemExit) as caught:
            run_app(application(error))
        assert caught.value.code == 2
        assert capsys.readouterr().err == f"error: {expected}\n"


def test_a_disk_that_is_full_for_weights_is_one_sentence(capsys):
    """safetensors raises no OSError, and names no file."""
    full = "Error while serializing: I/O error: No space left on device (os error 28)"
    with pytest.raises(SystemExit) as caught:
        run_app(application(SafetensorError(full)))
    assert caught.value.code == 2
    assert capsys.readouterr().err == f"error: a file can't be written ({full}); allowed: a disk with room\n"
    with pytest.raises(SafetensorError):
        run_app(application(SafetensorError("Error while deserializing header: invalid header")))


def test_a_name_that_the_locale_lacks_is_one_sentence(capsys):
    with pytest.raises(SystemExit) as caught:
        run_app(application(UnicodeEncodeError("ascii", "Prüfung", 2, 3, "ordinal not in range(128)")))
    assert caught.value.code == 2
    found = capsys.readouterr().err
    assert found.startswith("error: a name can't be written in this locale ('ascii' codec can't encode")
    assert found.count("\n") == 1
    with pytest.raises(UnicodeEncodeError):
        run_app(application(UnicodeEncodeError("utf-8", "\udcfc", 0, 1, "surrogates not allowed")))


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


@pytest.mark.parametrize("command", ["prune", "doctor", "stop"])
def test_neither_help_nor_a_mistyped_option_waits_for_torch(monkeypatch, command):
    monkeypatch.setattr("maskpro.cli.check_installation", lambda: pytest.fail("this takes seconds"))
    assert CliRunner().invoke(app, [command, "--help"]).exit_code == 0
    mistyped = CliRunner().invoke(app, [command, "--mistyped"])
    assert (mistyped.exit_code, "No such option" in mistyped.output) == (2, True)


@pytest.mark.parametrize("output", ["> /dev/full", "| head -1", ">&- 2>&-"])
def test_a_step_whose_results_are_files_goes_on_without_its_output(tmp_path, output):
    script = """
import sys, typer
from pathlib import Path
from maskpro.commands.running import results_first, run_app
app = typer.Typer()
@app.command()
@results_first
def command(output_dir: Path) -> None:
    for number in range(20_000):
        print("sampling ü", number, flush=True)
    output_dir.mkdir()
run_app(app)
"""
    command = f'"{sys.executable}" -c "$SCRIPT" "{tmp_path}/results" {output}'
    environment = os.environ | {"SCRIPT": script, "PYTHONPATH": os.getcwd(), "PYTHONIOENCODING": "ascii"}
    found = subprocess.run(["bash", "-o", "pipefail", "-c", command], env=environment, capture_output=True, text=True)
    assert (found.returncode, found.stderr) == (0, "")
    assert (tmp_path / "results").is_dir()


def test_characters_that_the_screen_lacks_end_no_command():
    script = """
import typer
from maskpro.commands.running import run_app
from maskpro.errors import MaskproError
app = typer.Typer()
@app.command()
def command():
    print("Prüfung ± 1", flush=True)
    raise MaskproError("name is Prüfung")
run_app(app)
"""
    environment = os.environ | {"PYTHONPATH": os.getcwd(), "PYTHONIOENCODING": "ascii"}
    found = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True)
    expected = (2, "Pr\\xfcfung \\xb1 1\n", "error: name is Pr\\xfcfung\n")
    assert (found.returncode, found.stdout, found.stderr) == expected


def test_the_steps_that_write_results_are_those_that_go_on():
    kept = {command.callback.__name__ for command in app.registered_commands if command.callback.__code__.co_name == "kept"}
    names = {command.callback.__name__ for command in app.registered_commands}
    assert names - kept == {"verify", "doctor", "monitor", "stop"}


def test_a_file_that_can_not_be_made_goes_by_its_own_name():
    with pytest.raises(OSError, match=r"'/proc/report.html'$"):
        write_text(Path("/proc/report.html"), "")
