"""Serves archives from worker processes of this machine, without Java, TorchServe and Ray
(docs/engines.md).

`segserve serve --engine local` starts it.
"""
