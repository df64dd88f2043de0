"""Closed streams, names that are no text, and few open files: what a command finds of its process."""

import os
import resource
import subprocess
import sys

import pytest

from maskpro.errors import MaskproError
from maskpro.machine.process import (
    check_texts,
    is_terminal,
    keep_warnings,
    one_line,
    provide_home,
    raise_file_limit,
    say_aside,
)

OPENED = """
import os, sys
from maskpro.machine.process import open_closed_streams
open_closed_streams()
with open(sys.argv[1], "w") as file:
    assert file.fileno() > 2
    os.write(1, b"said by a library in C")
    os.write(2, b"said by a library in C")
assert os.read(0, 1) == b""
"""


def run(tmp_path, script, streams, **environment):
    command = f'"{sys.executable}" -c "$SCRIPT" "{tmp_path}/file" {streams}'
    known = os.environ | {"SCRIPT": script, "PYTHONPATH": os.getcwd()} | environment
    return subprocess.run(["bash", "-c", command], env=known, capture_output=True, text=True)


@pytest.mark.parametrize("streams", ["<&- >&- 2>&-", "<&- >&-"])
def test_what_is_said_to_a_closed_stream_is_not_written_into_the_next_file(tmp_path, streams):
    assert run(tmp_path, OPENED, streams).returncode == 0
    assert (tmp_path / "file").read_bytes() == b""


@pytest.mark.parametrize("name", ["a\nb", "a\r\nb", "a\u2028b", "a\x1cb", "a\x85b"])
def test_a_name_with_a_line_break_stays_in_its_line(capsys, name):
    say_aside(f"no folder {name}")
    assert len(capsys.readouterr().err.splitlines()) == 1
    assert one_line("ä b[c]%20#?'\"\\") == "ä b[c]%20#?'\"\\"


def test_without_a_standard_error_nothing_comes_between_the_results(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stderr", None)
    say_aside("reading images")
    assert capsys.readouterr().out == ""
    assert not is_terminal(sys.stderr)


LIMITED = """
import resource
from maskpro.machine.process import raise_file_limit
resource.setrlimit(resource.RLIMIT_NOFILE, (64, {hard}))
print(raise_file_limit(100), *resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("hard", "expected"), [(64, "64 64 64"), (80, "80 80 80"), (200, "100 100 200")])
def test_more_open_files_are_taken_where_the_hard_limit_allows(tmp_path, hard, expected):
    assert run(tmp_path, LIMITED.format(hard=hard), "").stdout.strip() == expected


def test_a_limit_that_is_high_enough_is_left_alone():
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert raise_file_limit(1) >= before[0]
    assert resource.getrlimit(resource.RLIMIT_NOFILE) == before


@pytest.mark.parametrize(
    ("text", "encoding"), [("Prüfung", "utf-8"), ("Prüfung", "utf8"), ("plain", "ascii"), ("plain", "iso8859-1")]
)
def test_names_that_are_the_same_for_all_are_taken(text, encoding):
    check_texts(["tune_main.py", text], encoding)


@pytest.mark.parametrize("text", ["", "--data="])
def test_an_empty_argument_is_refused(text):
    """As an empty path it would be the current folder, with all images in it."""
    with pytest.raises(
        MaskproError, match=f"argument '{text}' is empty, as of a variable that isn't set; allowed: a value"
    ):
        check_texts(["doctor", "model", text])
    check_texts(["--features=a=", "--background=#fff"])


@pytest.mark.parametrize(
    ("text", "encoding", "shown"),
    [
        ("Pr\udcc3\udcbcfung", "ascii", r"'Pr\udcc3\udcbcfung'"),  # the bytes of "ü" in a locale that has none
        ("Pr\udcfcfung", "utf-8", r"'Pr\udcfcfung'"),  # Latin-1 in a locale of UTF-8
        ("Prüfung", "iso8859-1", r"'Pr\xfcfung'"),
    ],
)
def test_names_that_would_be_two_files_are_refused(text, encoding, shown):
    with pytest.raises(MaskproError) as caught:
        check_texts(["tune_main.py", text], encoding)
    assert str(caught.value).startswith(f"{shown} is no text in UTF-8 (the encoding of names is {encoding}); allowed: ")
    assert str(caught.value).isascii()


ENDED = """
import os, sys, typer
from maskpro.commands.running import run_app
app = typer.Typer()
@app.command()
def command(name: str = ""):
    print("ran", name)
if not sys.argv[1:]:
    os.mkdir("gone")
    os.chdir("gone")
    os.rmdir("../gone")
run_app(app)
"""


def test_a_current_folder_that_is_gone_is_one_sentence(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", ENDED],
        env=os.environ | {"PYTHONPATH": os.getcwd()},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    expected = "error: the current folder has been removed; allowed: to be in a folder that there is\n"
    assert (found.returncode, found.stdout, found.stderr) == (2, "", expected)


def test_a_name_that_is_no_text_in_the_locale_is_one_sentence(tmp_path):
    found = subprocess.run(
        [sys.executable, "-c", ENDED, "--name", "Prüfung".encode()],
        env=os.environ | {"PYTHONPATH": os.getcwd(), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(r"error: 'Pr\udcc3\udcbcfung' is no text in UTF-8 (the encoding of names is ascii)")
    assert found.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("error", ""),
        ("e", ""),
        ("default,error::DeprecationWarning,ignore:x", "default,ignore:x"),
        ("error:a message:UserWarning:torch", ""),
    ],
)
def test_warnings_that_are_errors_hold_for_this_process_alone(given, kept):
    environment = {"PYTHONWARNINGS": given}
    assert keep_warnings(environment) == (
        f"PYTHONWARNINGS is {given}, at which Ray's processes would end; it holds for this process alone"
    )
    assert environment == {"PYTHONWARNINGS": kept}


@pytest.mark.parametrize("environment", [{}, {"PYTHONWARNINGS": ""}, {"PYTHONWARNINGS": "ignore,default:x"}])
def test_warnings_that_are_no_errors_are_left_alone(environment):
    before = dict(environment)
    assert keep_warnings(environment) == ""
    assert environment == before


@pytest.fixture
def unknown_user(monkeypatch, tmp_path):
    """As in a container that is run with another user's number."""

    def getpwuid(number):
        raise KeyError(f"getpwuid(): uid not found: {number}")

    monkeypatch.setattr("maskpro.machine.process.pwd.getpwuid", getpwuid)
    monkeypatch.setattr("maskpro.machine.process.tempfile.tempdir", str(tmp_path))


@pytest.mark.parametrize("given", [{}, {"HOME": ""}])
def test_a_user_whom_the_machine_does_not_know_gets_a_home_and_a_name(unknown_user, tmp_path, given):
    user, environment = os.getuid(), dict(given)
    expected = f"HOME is not set, and this machine knows no user {user}; it is {tmp_path}/home-{user} for this process"
    assert provide_home(environment) == expected
    assert environment == {"HOME": f"{tmp_path}/home-{user}", "LOGNAME": str(user)}
    assert (tmp_path / f"home-{user}").stat().st_mode & 0o777 == 0o700
    assert provide_home(dict(given)) == expected, "the same one the next time"


def test_a_home_that_somebody_else_has_made_is_not_taken(unknown_user, tmp_path):
    (tmp_path / f"home-{os.getuid()}").write_text("no folder")
    environment = {"LOGNAME": "me"}
    provide_home(environment)
    assert environment["HOME"].startswith(f"{tmp_path}/home-{os.getuid()}-")
    assert environment["LOGNAME"] == "me"


def test_a_home_that_is_known_is_left_alone(unknown_user, monkeypatch):
    environment = {"HOME": "/home/me", "USER": "me"}
    assert provide_home(environment) == ""
    assert environment == {"HOME": "/home/me", "USER": "me"}
    monkeypatch.undo()
    assert provide_home(environment := {}) == ""
    assert environment == {}, "the machine knows it"
