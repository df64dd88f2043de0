"""Text from a data set of `datasets`, by name, without code of its own and in bounded memory.

The module imports datasets only within its functions.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import closing
from itertools import chain
from typing import Any

from maskpro.errors import MaskproError

# Characters that are read of a data set; 512 sequences of 128 tokens of held-out text need a tenth of them.
MOST_CHARACTERS = 2**25
_USUAL_COLUMN, _USUAL_SPLIT = "text", "train"


def read_dataset(name: str, column: str | None = None) -> tuple[str, tuple[str, ...]]:
    """The first 32 Mi characters of a data set's text, and what was guessed or left out.

    Args:
        name: as on the hub, or a local folder of a data set; its configuration and its split may follow, each after a
            colon: `Salesforce/wikitext:wikitext-2-raw-v1:train`.
        column: the column with the text; None: `text`, or the only column of texts.

    Raises:
        MaskproError: the package is missing, or there is no such data set, configuration, split, column or text.
    """
    source, config, split = _parts(name)
    try:
        import datasets
    except ImportError as error:
        raise MaskproError(
            f"data is {name}, which is no file and no folder here; for a data set's name package {error.name} is missing; "
            "allowed: after pip install maskpro[llm]"
        ) from error
    try:
        rows, split, notes = _rows(datasets, source, config, split)
        with closing(iter(rows)) as stream:
            first: Mapping[str, Any] = next(stream, {})
            column, more = _column(first, column, name)
            text, is_whole = _text(chain([first], stream), column)
    except (MaskproError, MemoryError):
        raise
    except Exception as error:  # datasets raises any error for what it can't find or read
        raise MaskproError(
            f"data is {name}, which is no file and no folder here, and can't be loaded as a data set "
            f"({type(error).__name__}: {_short(error)}); allowed: a text file, a folder of text, or a data set's "
            "NAME[:CONFIGURATION[:SPLIT]]"
        ) from error
    if not text.strip():
        raise MaskproError(f"data is {name}, which holds no text in column {column}; allowed: text of some thousand words")
    if not is_whole:
        notes += (f"data set {name}: the first {len(text):,} characters of split {split} are read, and no more",)
    return text, notes + more


def _parts(name: str) -> tuple[str, str | None, str | None]:
    source, *more = name.split(":")
    if not source or len(more) > 2 or not all(more):
        raise MaskproError(f"data is {name}; allowed: a text file, a folder of text, or NAME[:CONFIGURATION[:SPLIT]]")
    config, split = (*more, None, None)[:2]
    return source, config, split


def _rows(datasets: Any, source: str, config: str | None, split: str | None) -> tuple[Any, str, tuple[str, ...]]:
    """The rows as a stream, the split's name, and what was guessed."""
    splits = datasets.load_dataset(source, config, streaming=True)
    if split is None:
        split = _USUAL_SPLIT if _USUAL_SPLIT in splits else next(iter(splits))
        return splits[split], split, (f"data set {source}: split {split} of {', '.join(splits)} is read",)
    if split not in splits:
        raise MaskproError(f"data set {source} has no split {split}; allowed: {', '.join(splits)}")
    return splits[split], split, ()


def _column(first: Mapping[str, Any], column: str | None, name: str) -> tuple[str, tuple[str, ...]]:
    texts = [key for key, value in first.items() if isinstance(value, str)]
    if column in texts:
        return column, ()
    if column is not None or not texts or (_USUAL_COLUMN not in texts and len(texts) > 1):
        raise MaskproError(
            f"text_column is {column} with data set {name}; allowed: {', '.join(texts) or 'none, as no column holds text'}"
        )
    found = _USUAL_COLUMN if _USUAL_COLUMN in texts else texts[0]
    return found, (f"data set {name}: the text is that of column {found}",)


def _text(rows: Iterable[Mapping[str, Any]], column: str) -> tuple[str, bool]:
    """The text of the rows, and whether it is all of it."""
    pieces: list[str] = []
    count = 0
    for row in rows:
        if count >= MOST_CHARACTERS:
            return "".join(pieces)[:MOST_CHARACTERS], False
        piece = (row[column] or "").rstrip("\n") + "\n"  # WikiText's rows are lines, C4's are documents
        pieces.append(piece)
        count += len(piece)
    return "".join(pieces)[:MOST_CHARACTERS], count <= MOST_CHARACTERS


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
