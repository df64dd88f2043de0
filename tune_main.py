"""The main job: search masks, then promote and evaluate the best trial's.

python tune_main.py --space search_spaces/default.py
"""

from __future__ import annotations

from pathlib import Path

from maskpro.commands.running import run_command
from maskpro.tuning.launch import search_command


def _write_report(folder: Path) -> Path:
    from analysis.report import write_report

    return write_report(folder)


main = search_command(_write_report)

if __name__ == "__main__":
    run_command(main, check=False)
