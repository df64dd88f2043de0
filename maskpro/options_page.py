"""The page of all options, generated from their descriptions: python -m maskpro.options_page > docs/options.md."""

from __future__ import annotations

from collections.abc import Iterator

from maskpro.option_groups import SESSION
from maskpro.options import default_text, options_of, spelling
from maskpro.search_options import MOMENTARY, PLACE, JobOptions, SearchOptions
from maskpro.trainer_config import TrainerConfig

_HEAD = """# Options of the search

    python tune_main.py --space search_spaces/default.py [options]

This page is generated: `python -m maskpro.options_page > docs/options.md`. With `--resume FOLDER` and `--replay FOLDER`
only options marked in the last column may be given. If it is not given, a *kept* option keeps its value from the start of
the search, and a *momentary* one has its default.
"""
_SETTINGS = """
## Settings of learning

Options of `maskpro train`. A search space fixes or searches them by name (`--magnitude-prior` is `magnitude_prior`), all
but the seed: see [search_spaces/README.md](../search_spaces/README.md).
"""
_MARKS = {SESSION: "kept", MOMENTARY: "momentary", PLACE: "with `--replay` alone"}


def page() -> str:
    """The page, in markdown."""
    search = [*_table(JobOptions, marked=True), "", *_table(SearchOptions, marked=True)]
    return "\n".join([_HEAD, *search, _SETTINGS, *_table(TrainerConfig, marked=False)]) + "\n"


def _table(kind: type, *, marked: bool) -> Iterator[str]:
    """Lines of a table; `marked` adds the column with what may be given to a resumed search."""
    yield "| option | meaning | default |" + " resume, replay |" * marked
    yield "|---|---|---|" + "---|" * marked
    for item, known in options_of(kind):
        names = " ".join(f"`{flag}`" for flag in known.flags or (spelling(item.name),))
        group = next((text for name, text in reversed(_MARKS.items()) if name in known.groups), "")
        yield f"| {names} | {known.help} | {default_text(item, known)} |" + f" {group} |" * marked


if __name__ == "__main__":
    print(page(), end="")
