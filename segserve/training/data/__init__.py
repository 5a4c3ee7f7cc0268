"""Data sets of images and label maps, for training and evaluation."""

from .files import IGNORED, CheckedSplit, DataError, LabelledImages, ReadOptions, check_split
from .folders import VocFolder
from .opening import ClassFile, dataset_name, open_data, read_class_file

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
