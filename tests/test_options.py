"""An option is described in one place: command line, help, checks, record, resume and docs follow from it."""

import re
from dataclasses import asdict, dataclass
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

from maskpro.errors import MaskproError
from maskpro.option_groups import SESSION
from maskpro.options import Given, check_options, check_values, expanded, names_in, option, parsed
from maskpro.options_page import page
from maskpro.search_options import SESSION_OPTIONS, SearchOptions

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, kw_only=True)
class _More(SearchOptions):
    """The search's options and one more."""

    patience: int | None = option(None, "Reports without progress.", least=2, otherwise="unlimited", groups=(SESSION,))


def invoke(command, *arguments):
    application = typer.Typer()
    application.command()(command)
    return CliRunner().invoke(application, arguments, env={"COLUMNS": "200", "TERM": "dumb"}, catch_exceptions=False)


def test_an_option_more_is_one_field(tmp_path):
    handed = []

    @expanded
    def command(search: Given[_More]) -> None:
        handed.append(search.values)

    assert re.search(r"--patience .*Reports without progress; default: unlimited\.", invoke(command, "--help").output)
    assert invoke(command, "--patience", "3", "--no-frechet").exit_code == 0
    assert handed == [{"patience": 3, "frechet": False}], "what the user has not named is not there"
    options = _More(space=tmp_path / "space.py", experiment="x", patience=3, max_concurrent=2)
    record = options.describe()
    assert record["patience"] == 3
    again = _More.of_record(record)
    assert (again.patience, again.space, again.max_concurrent) == (3, tmp_path / "space.py", None)
    with pytest.raises(MaskproError, match="patience is 1; allowed: a whole number of at least 2"):
        _More.of_record(record, patience=1)
    assert set(names_in(_More, SESSION)) - set(SESSION_OPTIONS) == {"patience"}


def test_records_hold_every_option_and_give_it_back(tmp_path):
    options = SearchOptions(
        space=tmp_path / "space.py",
        experiment="x",
        results_dir=tmp_path,
        seed_points=(3, 1),
        model=str(tmp_path),
        warm_start=tmp_path / "before",
        frechet=False,
        seed=7,
    )
    assert SearchOptions.of_record(options.describe()) == options
    assert asdict(options).keys() == options.describe().keys()


def test_other_commands_get_the_whole_class_with_its_defaults():
    @dataclass(frozen=True, kw_only=True)
    class Numbers:
        """Of a command."""

        TITLE = "numbers"

        among: tuple[int, ...] = option((), "Numbers.", parse=lambda text: tuple(map(int, text.split(","))))
        most: int = option(3, "The largest.", least=1, choices=())
        kind: str = option("a", "Its kind.", choices=("a", "b"))
        where: Path | None = option(None, "Place.", positional=True, otherwise="here")
        twice: bool = option(False, "Do it twice.")
        either: bool | None = option(None, "Whether.", otherwise="it depends")

    handed = []

    def command(numbers, device="cpu"):
        handed.append((numbers, device))

    command.__annotations__ = {"numbers": Numbers, "device": str}
    shown = expanded(command)
    assert invoke(shown).exit_code == 0
    assert invoke(shown, "there", "--twice", "--no-either", "--device", "cuda", "--among", "1,2").exit_code == 0
    assert handed == [
        (Numbers(), "cpu"),
        (Numbers(where=Path("there"), twice=True, either=False, among=(1, 2)), "cuda"),
    ]
    assert parsed(Numbers, {"among": "4,5", "kind": "b"}) == {"among": (4, 5), "kind": "b"}
    with pytest.raises(MaskproError, match="kind is 'c'; allowed: a, b"):
        check_options(Numbers(kind="c"))
    with pytest.raises(MaskproError, match="most is 0; allowed: a whole number of at least 1"):
        check_options(Numbers(most=0))
    check_values(Numbers, {"device": "unknown to it"})
    with pytest.raises(MaskproError, match="most is 0; allowed: a whole number of at least 1"):
        check_values(Numbers, {"most": 0})


def test_the_page_of_options_is_that_of_the_code():
    assert (ROOT / "docs" / "options.md").read_text() == page(), "python -m maskpro.options_page > docs/options.md"
