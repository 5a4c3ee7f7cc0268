"""Data sets of images and label maps, for training and evaluation."""

from .check import CheckedSplit, check_split
from .files import IGNORED, DataError, LabelledImages, ReadOptions
from .opening import ClassFile, dataset_name, open_data, read_class_file
from .voc import VocFolder

__all__ = [
    "IGNORED",
    "CheckedSplit",
    "ClassFile",
    "DataError",
    "LabelledImages",
    "ReadOptions",
    "VocFolder",
    "check_split",
    "dataset_name",
    "open_data",
    "read_class_file",
]
