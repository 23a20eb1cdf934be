"""Pooling against the published code's results and against torch."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vl_peft.features import pool_grid, pool_time


def made(rows: int, columns: int) -> np.ndarray:
    """The input of the golden file, by the rule it states."""
    r, c = np.mgrid[:rows, :columns]
    return ((((r * columns + c) * 7919) % 1009 - 500) / 100).astype(np.float32)


@pytest.fixture
def golden(shared: Path) -> dict:
    return json.loads((shared / "data" / "golden" / "pool_golden.json").read_text())


@pytest.mark.parametrize("rows", [64, 65, 77, 100, 128, 181])
def test_time_golden(golden: dict, rows: int) -> None:
    pooled, want = pool_time(made(rows, 4), 64), golden[str(rows)]
    assert pooled.sum(dtype=np.float64) == pytest.approx(want["sum"], abs=1e-3)
    np.testing.assert_array_equal(pooled[0], np.float32(want["row0"]))
    np.testing.assert_array_equal(pooled[63], np.float32(want["row63"]))


@pytest.mark.parametrize("rows", [1, 3, 40, 63])
def test_short_videos_are_not_padded(golden: dict, rows: int) -> None:
    pooled = pool_time(made(rows, 4), 64)
    assert pooled.shape == (rows, 4)
    assert pooled.sum(dtype=np.float64) == pytest.approx(golden[str(rows)]["sum"], abs=1e-4)


def test_grid_golden(golden: dict) -> None:
    pooled, want = pool_grid(made(49, 3), 36), golden["grid49to36"]
    assert [1, *pooled.shape] == want["shape"]
    assert pooled.sum(dtype=np.float64) == pytest.approx(want["sum"], abs=1e-3)
    np.testing.assert_array_equal(pooled[0], np.float32(want["row0"]))
    np.testing.assert_array_equal(pooled[35], np.float32(want["row35"]))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 5), st.sampled_from([np.float16, np.float32]))
def test_grid_is_adaptive_max_pool(side: int, out: int, size: int, dtype: type) -> None:
    x = np.random.default_rng(side * 100 + out).normal(size=(side * side, size)).astype(dtype)
    pooled = pool_grid(x, out * out)
    assert pooled.dtype == dtype
    if out >= side:
        assert pooled is x
        return
    maps = torch.from_numpy(x).float().T.reshape(1, size, side, side)
    want = torch.nn.functional.adaptive_max_pool2d(maps, out).flatten(2)[0].T
    np.testing.assert_array_equal(pooled, want.numpy().astype(dtype))


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 200), st.integers(1, 80))
def test_time_is_adaptive_max_pool(rows: int, tokens: int) -> None:
    x = np.random.default_rng(rows).normal(size=(rows, 3)).astype(np.float32)
    pooled = pool_time(x, tokens)
    if rows <= tokens:
        assert pooled is x
    else:
        want = torch.nn.functional.adaptive_max_pool1d(torch.from_numpy(x).T[None], tokens)[0].T
        np.testing.assert_array_equal(pooled, want.numpy())


@pytest.mark.parametrize(("n", "tokens"), [(50, 36), (49, 35), (4, 0)])
def test_grid_must_be_square(n: int, tokens: int) -> None:
    with pytest.raises(ValueError, match="square"):
        pool_grid(np.zeros((n, 2), np.float32), tokens)


def test_time_needs_a_token() -> None:
    with pytest.raises(ValueError, match="0 tokens"):
        pool_time(np.zeros((3, 2), np.float32), 0)
