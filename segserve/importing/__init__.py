"""Imports checkpoints of other libraries as model folders."""
