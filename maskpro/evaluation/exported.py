"""Reading torch.export files without running code that a stranger put into them.

`torch.export.load` itself is not safe: it unpickles parts of a file, lets sympy evaluate its strings, and resolves the
names of a graph's functions in all of torch. A file is therefore checked here first. Only plain tensors and a graph of
torch's own operators are accepted. A file with anything else is refused, even if it is harmless.
"""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from maskpro.errors import MaskproError

# Path below the archive's top folder.
_MODEL = "models/model.json"
_INPUTS = "data/sample_inputs/model.pt"
_PAYLOADS = ("data/weights/model_weights_config.json", "data/constants/model_constants_config.json")
_PARTS = re.compile(
    r"models/model\.json|data/sample_inputs/model\.pt|data/weights/(weight_\d+|model_weights_config\.json)"
    r"|data/constants/(tensor_\d+|model_constants_config\.json)|archive_format|archive_version|byteorder|\.data/\w+"
)
_OPERATORS = re.compile(
    r"torch\.ops\.aten\.\w+\.\w+|torch\.sym_(int|float|max|min|not|ite)"
    r"|_operator\.(add|sub|mul|floordiv|truediv|mod|neg|pow|eq|ne|lt|le|gt|ge|getitem|and_|or_|not_)"
    r"|math\.(ceil|floor|trunc|sqrt)"
)
# Operators that read or write files.
_FORBIDDEN_OPERATORS = re.compile(r"torch\.ops\.aten\.(from_file|save)\b.*")
_SYMBOL = re.compile(r"Symbol\('[a-z]+\d+'(, (positive|nonnegative|integer|real)=True)*\)")
_FUNCTIONS = {"Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "Max", "Min", "Integer", "IntTrueDiv"}
_EXPRESSION = re.compile(r"[\w\s+*/%(),-]*")
_TREE_TYPES = {None, "builtins.tuple", "builtins.list", "builtins.dict"}


def is_exported_program(names: Sequence[str]) -> bool:
    """Whether these are the names in a file of `torch.export.save`."""
    return any(_below(name) == _MODEL for name in names)


def load_exported_program(path: Path, content: bytes, device: torch.device) -> Callable[[Tensor], Any]:
    """The program in the content of a torch.export file, on a device.

    Raises:
        MaskproError: the file holds more than tensors and torch's own operators, or can't be loaded.
    """
    try:
        problem = _problem(zipfile.ZipFile(io.BytesIO(content)))
    except Exception as error:  # a broken file can raise any error
        raise MaskproError(f"features {path} is a torch.export file that can't be read ({type(error).__name__})") from error
    if problem:
        raise MaskproError(
            f"features {path} is a torch.export file with {problem}, which could run code of its author; allowed: plain "
            "tensors and torch's own operators (or TorchScript)"
        )
    try:
        from torch.export.passes import move_to_device_pass

        program = move_to_device_pass(torch.export.load(io.BytesIO(content)), device)
        # Guards are text that would be executed.
        return program.module(check_guards=False)
    except Exception as error:  # any error, as above
        raise MaskproError(f"features {path} can't be loaded by torch.export ({type(error).__name__})") from error


def _problem(archive: zipfile.ZipFile) -> str:
    """The first thing in a file beyond tensors and torch's own operators; "": nothing."""
    names = archive.namelist()
    # torch finds the parts of an archive without regard to case.
    twice = [name for name, count in Counter(map(str.lower, names)).items() if count > 1]
    others = [name for name in names if not _PARTS.fullmatch(_below(name))]
    if twice or others or len({name.split("/")[0] for name in names}) != 1:
        return f"the part {(twice or others or names)[0]!r}"
    top = names[0].split("/")[0]
    for part in _PAYLOADS:
        for name, payload in json.loads(archive.read(f"{top}/{part}"))["config"].items():
            if payload["use_pickle"] is not False or not re.fullmatch(r"(weight|tensor)_\d+", payload["path_name"]):
                return f"the pickled tensor {name!r}"
    inputs = archive.read(f"{top}/{_INPUTS}")
    try:
        if inputs:  # torch would fall back to a full unpickler
            torch.load(io.BytesIO(inputs), weights_only=True)
    except Exception:  # the safe unpickler's refusals have no common error class
        return "pickled sample inputs"
    return next(_problems(json.loads(archive.read(f"{top}/{_MODEL}"))), "")


def _problems(value: Any) -> Iterator[str]:
    """Everything that is not allowed in a part of a graph's JSON, or in a part below it."""
    if isinstance(value, list):
        for part in value:
            yield from _problems(part)
    if not isinstance(value, dict):
        return
    for name, part in value.items():
        yield from _problems(part)
        if name == "target" and not _is_operator(part):
            yield f"the operator {str(part)[:60]!r}"
        if name == "expr_str" and not _is_expression(part):
            yield f"the expression {str(part)[:60]!r}"
        if name == "range_constraints" and not all(re.fullmatch(r"[a-z]+\d+", symbol) for symbol in part):
            yield "odd names of sizes"
        if name in ("in_spec", "out_spec") and not _is_plain_tree(json.loads(part)):
            yield "inputs of another type than tensors"


def _is_operator(target: Any) -> bool:
    allowed = isinstance(target, str) and _OPERATORS.fullmatch(target)
    return bool(allowed) and not _FORBIDDEN_OPERATORS.fullmatch(target)


def _is_expression(text: Any) -> bool:
    """Whether a text is arithmetic of sizes only; sympy evaluates such text as Python."""
    if not isinstance(text, str):
        return False
    rest = _SYMBOL.sub("1", text)
    words = set(re.findall(r"[A-Za-z_]\w*", rest))
    return bool(_EXPRESSION.fullmatch(rest)) and all(
        word in _FUNCTIONS or re.fullmatch(r"[a-z]\d+", word) for word in words
    )


def _is_plain_tree(tree: Any) -> bool:
    if isinstance(tree, list):
        return all(map(_is_plain_tree, tree))
    if isinstance(tree, dict):
        return tree.get("type") in _TREE_TYPES and _is_plain_tree(tree.get("children_spec", []))
    return isinstance(tree, int)


def _below(name: str) -> str:
    """A part's name below the archive's top folder."""
    return name.partition("/")[2]
