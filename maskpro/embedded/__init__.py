"""The small pretrained digits DDPM and digits classifier that ship with the package, and the script that makes them."""

from pathlib import Path

DIGITS_MODEL = Path(__file__).parent / "digits_ddpm"
DIGITS_CLASSIFIER = Path(__file__).parent / "digits_classifier.safetensors"
