"""The readers of images: scikit-learn's digits, CIFAR-10, a folder."""

from maskpro.images.cifar10 import CIFAR10_FOLDER, cifar10_images
from maskpro.images.folder import IMAGE_CACHE, IN_MEMORY_BYTES, folder_images
from maskpro.images.reading import ImageReading
from maskpro.images.splits import (
    DataNotFoundError,
    ImageCounts,
    ImageSplits,
    Split,
    digits_images,
    labelled_digits,
    split_images,
)

__all__ = [
    "CIFAR10_FOLDER",
    "IMAGE_CACHE",
    "IN_MEMORY_BYTES",
    "DataNotFoundError",
    "ImageCounts",
    "ImageReading",
    "ImageSplits",
    "Split",
    "cifar10_images",
    "digits_images",
    "folder_images",
    "labelled_digits",
    "split_images",
]
