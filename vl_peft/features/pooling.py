"""Shortening visual features to a given number of tokens, as the published code does inside its model."""

from __future__ import annotations

from math import isqrt

import numpy as np


def pool_grid(x: np.ndarray, tokens: int) -> np.ndarray:
    """Adaptive max pool of a square grid, e.g. 7x7 to 6x6: ``torch.nn.AdaptiveMaxPool2d`` on a flattened grid.

    Args:
        x: ``[n, F]``, the grid in row-major order.
        tokens: the number of tokens wanted, a square number.

    Returns:
        ``[tokens, F]`` of the dtype of ``x``; ``x`` itself when it is not longer than ``tokens``.

    Raises:
        ValueError: a grid has to be shortened and ``n`` or ``tokens`` is not a square number.
    """
    n, size = x.shape
    if n <= tokens:
        return x
    side, out = isqrt(n), isqrt(tokens)
    if side * side != n or out * out != tokens or tokens < 1:
        raise ValueError(f"cannot pool {n} grid tokens to {tokens}: both must be square numbers")
    rows = pool_time(x.reshape(side, side * size), out).reshape(out, side, size)
    columns = pool_time(rows.transpose(1, 0, 2).reshape(side, out * size), out).reshape(out, out, size)
    return np.ascontiguousarray(columns.transpose(1, 0, 2)).reshape(tokens, size)


def pool_time(x: np.ndarray, tokens: int) -> np.ndarray:
    """Adaptive max pool over time: bin i is the maximum of rows ``floor(i*T/n)`` to ``ceil((i+1)*T/n) - 1``.

    Args:
        x: ``[T, F]``.
        tokens: n, the number of tokens wanted, at least 1.

    Returns:
        ``[tokens, F]`` of the dtype of ``x``; ``x`` itself when it is not longer than ``tokens``.

    Raises:
        ValueError: ``tokens`` is less than 1.
    """
    length = len(x)
    if tokens < 1:
        raise ValueError(f"cannot pool to {tokens} tokens")
    if length <= tokens:
        return x
    bins = ((i * length // tokens, -(-(i + 1) * length // tokens)) for i in range(tokens))
    return np.stack([x[first:last].max(axis=0) for first, last in bins])
