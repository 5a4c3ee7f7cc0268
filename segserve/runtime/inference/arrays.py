"""The few array operations that PyTorch and NumPy spell differently.

What follows the network is written once: for PyTorch's tensors, on a CPU or a GPU, and for NumPy's
arrays, which need no PyTorch.
"""

import math
from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = Any
"""A tensor of PyTorch, or an array of NumPy."""

DType = Literal["uint8", "float32", "float64"]

_LEAST_SPREAD = float(np.finfo(np.float32).tiny)


def namespace(array: Array) -> Any:  # noqa: ANN401 - the module `numpy` or `torch`
    """The module whose functions compute with this array."""
    if isinstance(array, np.ndarray):
        return np
    import torch

    return torch


def empty(like: Array, shape: Sequence[int], dtype: DType) -> Array:
    """A new array on the device of `like`, with any content."""
    if isinstance(like, np.ndarray):
        return np.empty(shape, dtype)
    return like.new_empty(shape, dtype=getattr(namespace(like), dtype))


def zeros(like: Array, shape: Sequence[int], dtype: DType) -> Array:
    """A new array of zeros on the device of `like`."""
    array = empty(like, shape, dtype)
    array[...] = 0
    return array


def as_like(values: NDArray[Any], like: Array) -> Array:
    """The values as an array of the same kind and on the same device as `like`."""
    if isinstance(like, np.ndarray):
        return values
    return namespace(like).from_numpy(values).to(like.device)


def on_host(array: Array) -> NDArray[Any]:
    """The array in the host's memory."""
    return array if isinstance(array, np.ndarray) else array.cpu().numpy()


def is_on_cpu(array: Array) -> bool:
    return isinstance(array, np.ndarray) or array.device.type == "cpu"


def equal_to(labels: Array, class_id: int) -> Array:
    """1 where a label is `class_id`, else 0: float32, of the same shape."""
    if isinstance(labels, np.ndarray):
        return (labels == class_id).astype(np.float32)
    # Bytes: on a CPU, PyTorch's bools take several times as long.
    return labels.clone().eq_(class_id).float()


def softmax(logits: Array) -> Array:
    """Over the first axis."""
    if not isinstance(logits, np.ndarray):
        return logits.softmax(0)
    exponentials = np.exp(logits - logits.max(0))
    return exponentials / exponentials.sum(0)


def logsumexp(logits: Array) -> Array:
    """(C, ...) -> (1, ...)."""
    if not isinstance(logits, np.ndarray):
        return logits.logsumexp(0, keepdim=True)
    top = logits.max(0, keepdims=True)
    return top + np.log(np.exp(logits - top).sum(0, keepdims=True))


def relative_error(logits: Array, expected: Array) -> float:
    """RMS of the difference, in standard deviations of the expected logits; NaN if one is NaN."""
    spread = max(float(expected.std()), _LEAST_SPREAD)
    return math.sqrt(((logits - expected) ** 2).mean()) / spread
