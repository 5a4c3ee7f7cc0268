"""Measures a model on labelled images at their original size."""
