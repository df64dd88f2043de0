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
def test_only_tuning_knows_ray_and_optuna_and_nothing_above_imports_it(path):
    names = set(imported(path))
    if "tuning" not in path.parts:
        assert not {name for name in names if name.split(".")[0] in ("ray", "optuna")}
        # The commands stand below all rooms; what two of them take of tuning knows no Ray either (see test_control.py).
        allowed = {"maskpro.tuning.control"} if path.name == "cli.py" else set()
        assert {name for name in names if name.startswith("maskpro.tuning")} <= allowed


def run_with_a_torchvision_that_does_not_fit(tmp_path, *arguments):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    run = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    assert run.returncode == 2
    return run.stderr.strip().splitlines()


MASKPRO = "import sys; from maskpro.cli import main; sys.argv[1:] = ['verify', 'masks']; main()"


@pytest.mark.parametrize("command", [[str(ROOT / "tune_main.py")], ["-c", MASKPRO]], ids=str)
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
