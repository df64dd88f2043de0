"""No module asks the network as it is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# A connection within the machine, such as a library's own pair of sockets, is no network.
SCRIPT = """
import importlib, socket, sys

def refused(*given, **named):
    raise SystemExit(f"asks the network: {given}")

def connect(self, address, plain=socket.socket.connect):
    return refused(address) if self.family in (socket.AF_INET, socket.AF_INET6) else plain(self, address)

socket.socket.connect = socket.socket.connect_ex = connect
socket.getaddrinfo = socket.gethostbyname = socket.create_connection = refused
for name in sys.argv[1:]:
    importlib.import_module(name)
print(len(sys.argv) - 1)
"""


@pytest.mark.full
@pytest.mark.slow
def test_no_module_asks_the_network_as_it_is_imported():
    files = [path.relative_to(ROOT) for room in ("maskpro", "analysis") for path in (ROOT / room).rglob("*.py")]
    names = [".".join(path.with_suffix("").parts).removesuffix(".__init__") for path in sorted(files)]
    run = subprocess.run([sys.executable, "-c", SCRIPT, *names], capture_output=True, text=True, timeout=600, cwd=ROOT)
    assert run.returncode == 0, run.stdout + run.stderr
    assert int(run.stdout.splitlines()[-1]) == len(names) > 100
