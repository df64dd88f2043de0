"""From a mask to the file that a runtime takes: diffusers folders, compressed files, torch's 2:4 kernels, ONNX."""

from maskpro.export.compressed import is_compressed, load_compressed, load_network
from maskpro.export.network import MaskedNetwork, masked_network
from maskpro.export.semi_structured import load_semi_structured, to_semi_structured

__all__ = [
    "MaskedNetwork",
    "is_compressed",
    "load_compressed",
    "load_network",
    "load_semi_structured",
    "masked_network",
    "to_semi_structured",
]
