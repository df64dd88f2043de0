"""The readers of images: scikit-learn's digits, CIFAR-10, a folder."""

from maskpro.images.cifar10 import cifar10_images
from maskpro.images.folder import folder_images
from maskpro.images.splits import DataNotFoundError, ImageSplits, Split, digits_images, labelled_digits, split_images

__all__ = [
    "DataNotFoundError",
    "ImageSplits",
    "Split",
    "cifar10_images",
    "digits_images",
    "folder_images",
    "labelled_digits",
    "split_images",
]
