"""Text from files, and its disjoint parts: for training, validation, selection and test."""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

from maskpro.errors import MaskproError

# Files of a folder that are read.
TEXT_ENDINGS = (".txt", ".text", ".md", ".rst")
# The text is cut into blocks of whole lines of at least so many characters, and shorter ones where there is little text.
_BLOCK_CHARACTERS = 4096
_LEAST_BLOCKS = 40
# The first seven of ten blocks in a row are for training.
_DEAL = ("train",) * 7 + ("validation", "selection", "test")


@dataclass(frozen=True, kw_only=True)
class TextSplits:
    """The parts of a text."""

    train: str
    validation: str
    selection: str
    test: str


def split_text(text: str) -> TextSplits:
    """Deal the blocks of a text to its parts, so that all parts are alike; the parts have no block in common."""
    least = min(_BLOCK_CHARACTERS, max(1, len(text) // _LEAST_BLOCKS))
    parts: dict[str, list[str]] = {name: [] for name in _DEAL}
    for number, block in enumerate(_blocks(text, least)):
        parts[_DEAL[number % len(_DEAL)]].append(block)
    return TextSplits(**{name: "".join(blocks) for name, blocks in parts.items()})


def _blocks(text: str, least: int) -> list[str]:
    """The text in blocks of at least that many characters, which end at a line's end or, in a long line, anywhere."""
    blocks, start = [], 0
    while start < len(text):
        end = text.find("\n", start + least - 1, start + 2 * least) + 1 or start + least
        blocks.append(text[start:end])
        start = end
    return blocks


def read_text(path: Path) -> tuple[str, tuple[str, ...]]:
    """The text of a file, or of all text files of a folder in the order of their names; and what was passed over.

    Raises:
        MaskproError: there is no such file or folder, no text in it, or a file is not in UTF-8.
    """
    notes: tuple[str, ...] = ()
    if path.is_dir():
        every = sorted(found for found in path.rglob("*") if found.is_file())
        files = [found for found in every if found.suffix.lower() in TEXT_ENDINGS]
        others = len(every) - len(files)
        if others:
            notes = (f"{others} files of {path} are passed over, as their names end in none of {' '.join(TEXT_ENDINGS)}",)
    elif path.is_file():
        files = [path]
    else:
        raise MaskproError(
            f"data is {path}, which is no file and no folder here; allowed: a text file, or a folder of text"
        )
    text = "\n\n".join(_read(found) for found in files)
    if not text.strip():
        endings = f" in files that end in {' '.join(TEXT_ENDINGS)}" if path.is_dir() else ""
        raise MaskproError(f"data is {path}, which holds no text{endings}; allowed: text of some thousand words")
    return text, notes


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
        return (gzip.decompress(content) if path.suffix == ".gz" else content).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise MaskproError(f"data file {path} is not in UTF-8 ({error}); allowed: text in UTF-8") from error
    except (OSError, EOFError, ValueError) as error:
        raise MaskproError(f"data file {path} can't be read ({error}); allowed: a text file") from error
