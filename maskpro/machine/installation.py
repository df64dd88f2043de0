"""Check that torch and torchvision fit together; their own errors don't help."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from maskpro.errors import MaskproError


def check_installation() -> None:
    """Raise where torchvision can't be imported, as beside a CPU-only torch of another source.

    Its import then fails deep inside, and so does that of diffusers. The check is not part of importing `maskpro`: the
    processes of a search need no torchvision, and each would wait for it.
    """
    try:
        import torchvision  # noqa: F401
    except (RuntimeError, ImportError) as error:
        raise MaskproError(
            f"torch {_installed('torch')} and torchvision {_installed('torchvision')} don't fit together ({error}); "
            "install both from the same source, such as: pip install --force-reinstall torch torchvision"
        ) from None


def limit_threads(cores: int) -> None:
    """Let torch compute with no more threads than this process has cores.

    torch counts the cores that the process is bound to, but ignores the quota of its control group. A container with two
    cores on a large machine would run dozens of threads and be throttled.
    """
    import torch

    if torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"
