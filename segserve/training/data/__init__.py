"""Data sets of images and label maps, for training and evaluation."""

from .check import Scan, scan
from .classes import read_class_file, read_classes
from .errors import DataError
from .labelled import IGNORED, LabelledImages
from .opening import open_data
from .voc import VocFolder

__all__ = [
    "IGNORED",
    "DataError",
    "LabelledImages",
    "Scan",
    "VocFolder",
    "open_data",
    "read_class_file",
    "read_classes",
    "scan",
]
