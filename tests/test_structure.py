"""The package's own rules: who may import what, and no hidden randomness."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "maskpro").rglob("*.py"))


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_tuning_knows_ray_only_the_schedule_optuna_and_nothing_above_imports_them(path):
    room = path.relative_to(ROOT / "maskpro").parts[0]
    names = set(imported(path))
    if room != "tuning":
        assert not {name for name in names if name.split(".")[0] == "ray" or name.startswith("maskpro.tuning")}
    if room not in ("tuning", "schedule"):
        assert not {name for name in names if name.split(".")[0] == "optuna"}


def test_tuning_holds_no_more_than_what_needs_ray():
    assert len(list((ROOT / "maskpro" / "tuning").glob("*.py"))) <= 16


# The rooms whose modules stand in an order of their own.
_SEARCH_ROOMS = ("schedule", "monitoring", "tuning")


def listed_rooms():
    """Modules of maskpro by the place of their row in CONTRIBUTING.md: (row, row of the search rooms' own list)."""
    places, rooms = {}, {}
    rows = re.findall(r"^\| (`.*?) \|", (ROOT / "CONTRIBUTING.md").read_text(), flags=re.MULTILINE)
    for number, names in enumerate(re.findall(r"`([^`]+)`", row) for row in rows):
        room = names[0].split("/")[0]
        if names[0].removeprefix("maskpro/").rstrip("/") in _SEARCH_ROOMS:
            rooms[names[0].split("/")[1]] = number
        elif names[0].startswith("maskpro/"):
            paths = [ROOT / "maskpro" / name.removeprefix("maskpro/") for name in names]
            places |= {path: (number, 0) for path in MODULES if any(path.is_relative_to(found) for found in paths)}
        elif room in _SEARCH_ROOMS:
            places |= {ROOT / "maskpro" / room / name.removeprefix(f"{room}/"): (rooms[room], number) for name in names}
    return places


# Rooms that serve every kind of network, and what knows one of them.
_FOR_EVERY_KIND = (
    "logit_gradient.py",
    "logit_state.py",
    "trainer.py",
    "runs.py",
    "held_out.py",
    "workload_evaluation.py",
    "workload.py",
    "metrics.py",
    "hidden_targets.py",
    "layer_statistics.py",
    "preflight.py",
    "doctor.py",
    "commands/export.py",
    "pipeline",
    "schedule",
    "monitoring",
    "tuning",
)
_OF_ONE_KIND = (
    "diffusers",
    "transformers",
    "maskpro.evaluation",
    "maskpro.images",
    "maskpro.pretrained",
    "maskpro.weight_files",
    "maskpro.weight_keys",
    "maskpro.language_models",
    "maskpro.text",
    "maskpro.samples",
)
_OF_ONE_KIND += ("maskpro.noise_schedule", "maskpro.objectives.", "maskpro.workloads.", "maskpro.embedded")


@pytest.mark.parametrize("path", [*MODULES, *sorted((ROOT / "analysis").rglob("*.py"))], ids=lambda path: path.name)
def test_what_serves_every_kind_of_network_imports_none(path):
    parts = path.relative_to(ROOT).parts
    if parts[0] == "analysis" or {parts[1], "/".join(parts[1:])} & set(_FOR_EVERY_KIND):
        assert [name for name in imported(path) if name.startswith(_OF_ONE_KIND)] == []


def test_one_function_alone_builds_trainers():
    called = [
        path.relative_to(ROOT).as_posix()
        for path in (*MODULES, *sorted((ROOT / "benchmarks").rglob("*.py")))
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "MaskTrainer"
    ]
    assert called == []


def runtime_nodes(tree):
    for node in ast.iter_child_nodes(tree):
        if not (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"):
            yield node
            yield from runtime_nodes(node)


def modules_imported(path):
    for node in runtime_nodes(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("maskpro"):
            for name in (node.module, *(f"{node.module}.{alias.name}" for alias in node.names)):
                place = ROOT / name.replace(".", "/")
                yield from (found for found in (place.with_suffix(".py"), place / "__init__.py") if found.is_file())


def test_every_module_stands_in_the_list_of_rooms_and_imports_go_up_it():
    places = listed_rooms()
    modules = [
        path for path in MODULES if path.name != "__init__.py" or path.parent.name not in ("maskpro", *_SEARCH_ROOMS)
    ]
    assert set(places) == set(modules)
    down = [
        f"{path.relative_to(ROOT)} imports {other.relative_to(ROOT)}"
        for path in modules
        for other in modules_imported(path)
        if other in places and other.parent.name != "embedded" and places[other] > places[path]
    ]
    assert down == []


def packages_of(path):
    """The `__init__.py` of the packages that importing a module runs first."""
    return {folder / "__init__.py" for folder in path.parents if folder.is_relative_to(ROOT / "maskpro")}


def in_circles(imports):
    """Of modules and what they import, those of a circle and between two: the rest goes first, or last."""
    left = dict(imports)
    while True:
        named = set().union(*left.values())
        kept = {path: others for path, others in left.items() if others & left.keys() and path in named}
        if len(kept) == len(left):
            return left
        left = kept


def test_circles_of_imports_are_found():
    assert in_circles({1: {2}, 2: {3}, 3: {4}, 4: set()}) == {}
    assert in_circles({1: {2}, 2: {3}, 3: {2, 4}, 4: set()}).keys() == {2, 3}


def test_no_import_leads_back_to_its_module():
    """Not even by way of other modules. Imports within functions count, those for type checkers alone don't."""
    imports = {}
    for path in MODULES:
        others = set(modules_imported(path))
        # A package is run before its modules are; a module's own packages are being run already.
        imports[path] = (others | set().union(*map(packages_of, others)) - packages_of(path)) - {path}
    assert sorted(str(path.relative_to(ROOT)) for path in in_circles(imports)) == []


@pytest.mark.parametrize("folder", ["maskpro", "analysis"])
def test_no_file_is_longer_than_a_reader_holds_in_mind(folder):
    lengths = {path: len(path.read_text().splitlines()) for path in (ROOT / folder).rglob("*.py")}
    assert {str(path.relative_to(ROOT)): length for path, length in lengths.items() if length > 350} == {}


def run_with_a_torchvision_that_does_not_fit(tmp_path, *arguments):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    run = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == 2
    return run.stderr.strip().splitlines()


MASKPRO = "import sys; from maskpro.cli import main; sys.argv[1:] = ['verify', 'masks']; main()"


SEARCH = [str(ROOT / "tune_main.py"), "--space", str(ROOT / "search_spaces" / "default.py")]


@pytest.mark.slow
@pytest.mark.parametrize("command", [SEARCH, ["-c", MASKPRO]], ids=["tune_main.py", "maskpro"])
def test_a_torchvision_that_does_not_fit_torch_is_named_in_one_sentence(tmp_path, command):
    (line,) = run_with_a_torchvision_that_does_not_fit(tmp_path, *command)
    assert re.match(
        r"error: torch \S+ and torchvision \S+ don't fit together \(operator torchvision::nms does not .*pip install", line
    )


@pytest.mark.parametrize("path", [path for path in MODULES if path.name != "build.py"], ids=lambda path: path.name)
def test_no_global_random_state(path):
    text = path.read_text()
    for call in ("torch.manual_seed(", "np.random.seed(", "np.random.rand", "random.seed("):
        assert call not in text
