"""The shapes of the JSON files in an experiment's folder: what readers take from each. A changed file is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskpro.errors import MaskproError
from maskpro.files import read_json

# A shape is a type, a tuple of shapes of which one fits, a list with the shape of each element, or a dictionary of names
# and shapes; under `str` it has the shape of all other entries. Entries that it does not name may be anything, and those
# whose name has no "!" may be missing.
Shape = Any
NUMBER = (int, float)
_OPTIONAL_NUMBER = (*NUMBER, None)
_FIGURE = (*_OPTIONAL_NUMBER, str, [_OPTIONAL_NUMBER])
_ESTIMATE = ({"value!": NUMBER, "standard_error!": NUMBER}, None)

DESCRIPTION: Shape = {
    "space": {"param_space": {str: (*_OPTIONAL_NUMBER, str, bool, list, {"attributes": dict})}, "reduction_factor": int},
    "trial": {"report_samples": int, "max_samples": int},
}
EVALUATION: Shape = {
    "models!": {str: {str: _FIGURE, "test_loss_by_timestep": [_OPTIONAL_NUMBER]}},
    "recovery!": _OPTIONAL_NUMBER,
    "recovery_error": _OPTIONAL_NUMBER,
    "loss_improvement!": NUMBER,
    "fidelity": _OPTIONAL_NUMBER,
    "fidelity_error": _OPTIONAL_NUMBER,
    "distance_to_dense": ({"frechet_distance": _ESTIMATE}, None),
    "protocol": {"trial_id": (str, None), "num_generated": int},
    "candidates": [{str: _FIGURE}],
    "warnings": [str],
    "pictures": {str: str},
    "dense_layers": {"layers": [dict], "weights_share": NUMBER, "multiply_adds_share": NUMBER},
}
CONFIG: Shape = {"fidelity": _OPTIONAL_NUMBER}
# More than any count or figure: beyond it numbers are no longer exact, and in the end no numbers for pandas.
_LARGEST = 2**63


def read_record(path: Path, shape: Shape, *, is_not: str) -> dict[str, Any] | None:
    """The content of a JSON file of that shape; None: there is no such file.

    Args:
        is_not: what to say of another one, such as "holds no configuration".

    Raises:
        MaskproError: it is not JSON, or not of that shape.
    """
    if not path.is_file():
        return None
    content = read_json(path)
    if not _fits(content, shape):
        raise MaskproError(f"{path} {is_not}; allowed: the file as it was written")
    record: dict[str, Any] = content
    return record


def _fits(value: Any, shape: Shape) -> bool:
    if isinstance(shape, tuple):
        return any(_fits(value, one) for one in shape)
    if isinstance(shape, list):
        return isinstance(value, list) and all(_fits(element, shape[0]) for element in value)
    if isinstance(shape, dict):
        named = {name if name is str else name.rstrip("!"): entry for name, entry in shape.items()}
        return (
            isinstance(value, dict)
            and all(name is str or not name.endswith("!") or name[:-1] in value for name in shape)
            and all(_fits(entry, named.get(name, named.get(str, object))) for name, entry in value.items())
        )
    if shape is None:
        return value is None
    if shape in NUMBER and isinstance(value, NUMBER):
        is_whole = isinstance(value, int) and not isinstance(value, bool)
        return abs(value) < _LARGEST if is_whole else shape is float and isinstance(value, float)
    return isinstance(value, shape)
