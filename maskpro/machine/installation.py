"""Whether torch and torchvision fit together, which neither says in a way that helps."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from maskpro.errors import MaskproError


def check_installation() -> None:
    """Raise where torchvision can't be imported: a CPU-only torch beside the ordinary one, for example.

    It fails deep inside then, and diffusers with it. Not done where `maskpro` is imported, because the processes of a
    search, which need no torchvision, would each wait for it.
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

    torch counts those that the process is bound to, but not the quota of its control group: on a large machine a container
    with two cores would be throttled with dozens of threads.
    """
    import torch

    if torch.get_num_threads() > cores:
        torch.set_num_threads(cores)


def _installed(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"
