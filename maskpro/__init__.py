"""maskpro: learn strict n:m sparse masks for frozen, pretrained diffusion networks, and search for the best one."""

import importlib.metadata as _metadata


def _installed(name: str) -> str:
    try:
        return _metadata.version(name)
    except _metadata.PackageNotFoundError:
        return "(not installed)"


try:
    import torchvision as _torchvision  # noqa: F401
except (RuntimeError, ImportError) as _error:
    # A CPU-only torch beside the ordinary torchvision fails deep inside, and diffusers with it.
    raise ImportError(
        f"torch {_installed('torch')} and torchvision {_installed('torchvision')} don't fit together ({_error}); install "
        "both from the same source, such as: pip install --force-reinstall torch torchvision"
    ) from None
