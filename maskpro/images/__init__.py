"""Readers of images: scikit-learn's digits, CIFAR-10, a folder."""

from maskpro.images.cifar10 import CIFAR10_FOLDER, cifar10_images, labelled_cifar10
from maskpro.images.folder import IMAGE_CACHE, IN_MEMORY_BYTES, folder_images, read_files
from maskpro.images.listing import find_images, is_system_name, split_folders
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
    "find_images",
    "folder_images",
    "is_system_name",
    "labelled_cifar10",
    "labelled_digits",
    "read_files",
    "split_folders",
    "split_images",
]
