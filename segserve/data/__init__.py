"""Data sets of images and label maps, for training and evaluation."""

from .labelled import IGNORED, LabelledImages
from .voc import VocFolder

__all__ = ["IGNORED", "LabelledImages", "VocFolder"]
