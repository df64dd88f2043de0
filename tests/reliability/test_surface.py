"""What a local search shows to others: where its processes listen, and who may talk to them."""

from __future__ import annotations

import ipaddress
import os
import subprocess
import sys

import psutil
import pytest
from searches import SPACE, Driver, new_search

pytestmark = [pytest.mark.full, pytest.mark.slow]

JOIN = "import ray; ray.init(address='{address}', log_to_driver=False); print(ray.cluster_resources()['CPU'])"


def listening(driver):
    """Name of the process and address of each socket on which the driver's processes listen."""
    found = []
    for process in [psutil.Process(driver.pid), *driver.of_it.values()]:
        try:
            name = process.name()
            found += [(name, end.laddr) for end in process.net_connections("inet") if end.status == psutil.CONN_LISTEN]
        except psutil.NoSuchProcess:
            pass
    return found


def joined(address, **environment):
    """What a stranger's process gets from the Ray at that address."""
    known = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-c", JOIN.format(address=address)]
    return subprocess.run(command, env=known | environment, capture_output=True, text=True, timeout=120)


def test_a_local_search_listens_on_loopback_alone_and_asks_for_the_token(tmp_path, capsys):
    (tmp_path / "space.py").write_text(SPACE)
    search = tmp_path / "search"
    driver = Driver(new_search(tmp_path), tmp_path / "output.txt")
    try:
        history = search / "history.jsonl"
        assert driver.wait_for(lambda: history.is_file() and b'"event": "report"' in history.read_bytes())
        driver.look()
        sockets = listening(driver)
        with capsys.disabled():
            print()
            for name, address in sorted(sockets, key=str):
                print(f"  {name:20} {address.ip} {address.port}")
        assert {"gcs_server", "raylet"} <= {name for name, _ in sockets}
        for name, (host, port) in sockets:
            found = ipaddress.ip_address(host)
            mapped = getattr(found, "ipv4_mapped", None) or found
            assert mapped.is_loopback, (name, host, port)
        port = next(address.port for name, address in sockets if name == "gcs_server")
        elsewhere = {"HOME": str(tmp_path), "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
        refused = [
            joined(f"127.0.0.1:{port}", RAY_AUTH_MODE="disabled", **elsewhere),
            joined(f"127.0.0.1:{port}", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64, **elsewhere),
        ]
        for run in refused:
            assert run.returncode != 0
            assert "auth" in (run.stdout + run.stderr).lower()
        allowed = joined(f"127.0.0.1:{port}", RAY_AUTH_MODE="token", RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER="0")
        assert allowed.returncode == 0, allowed.stderr
    finally:
        driver.kill()
        driver.seconds_left_over()
