"""The small pretrained models that ship with the package, the text of one of them, and the scripts that make them."""

from pathlib import Path

DIGITS_MODEL = Path(__file__).parent / "digits_ddpm"
DIGITS_CLASSIFIER = Path(__file__).parent / "digits_classifier.safetensors"
LANGUAGE_MODEL = Path(__file__).parent / "docstrings_llama"
LANGUAGE_MODEL_NAME = "embedded docstrings LLaMA"
DOCSTRINGS = Path(__file__).parent / "docstrings.txt.gz"
