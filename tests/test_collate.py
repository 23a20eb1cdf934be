from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vl_peft.batch import Batch, Example
from vl_peft.collate import Visual, collate, draw_target, uniform
from vl_peft.tokenizer import TextTokenizer


@pytest.fixture(scope="module")
def tokenizer(tokenizer_folder: Path) -> TextTokenizer:
    return TextTokenizer(str(tokenizer_folder))


def features(*lengths: int) -> list[Visual]:
    """Features ``[v, 2]`` in which each number occurs once."""
    start = 0
    arrays = []
    for length in lengths:
        arrays.append(Visual(np.arange(start, start + 2 * length, dtype=np.float16).reshape(length, 2) + 1))
        start += 2 * length
    return arrays


def batch(tokenizer: TextTokenizer, visual: list[list[Visual]], pad_visual_to: int | None = None) -> Batch:
    examples = [Example(f"q{i}", f"w{i + 4} w9", ("image",)) for i in range(len(visual))]
    targets = [(f"w{i + 50}", i / 2) for i in range(len(visual))]
    return collate("vqa", examples, targets, visual, tokenizer, None, None, pad_visual_to=pad_visual_to)


# -- visual tokens --------------------------------------------------------------------------------------------------


def test_visual_padding_is_masked(tokenizer: TextTokenizer) -> None:
    out = batch(tokenizer, [features(3), features(1), features(2)])
    assert out.visual.dtype == torch.float32
    assert out.visual_mask.tolist() == [[1, 1, 1], [1, 0, 0], [1, 1, 0]]
    assert out.visual[0].tolist() == [[1, 2], [3, 4], [5, 6]]
    assert out.visual[1].tolist() == [[1, 2], [0, 0], [0, 0]]
    assert out.object_index[0].tolist() == [0, 1, 2]
    assert out.image_index.eq(0).all()
    assert out.boxes.tolist() == torch.zeros(3, 3, 4).tolist()


def test_the_images_of_a_pair_are_counted_apart(tokenizer: TextTokenizer) -> None:
    out = batch(tokenizer, [features(2, 3), features(1, 1)])
    assert out.visual_mask.tolist() == [[1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert out.image_index[0].tolist() == [0, 0, 1, 1, 1]
    assert out.object_index[0].tolist() == [0, 1, 0, 1, 2]
    assert out.image_index[1, :2].tolist() == [0, 1]
    assert out.object_index[1, :2].tolist() == [0, 0]
    assert out.visual[0, :, 0].tolist() == [1, 3, 5, 7, 9]


def test_boxes_stand_beside_their_features(tokenizer: TextTokenizer) -> None:
    (first, second), boxes = features(2, 1), np.arange(8, dtype=np.float32).reshape(2, 4)
    out = batch(tokenizer, [[first._replace(boxes=boxes), second._replace(boxes=boxes[1:])], [second]])
    assert out.boxes.tolist() == [[[0, 1, 2, 3], [4, 5, 6, 7], [4, 5, 6, 7]], [[0] * 4] * 3]


def test_padded_frames_can_be_attended_to(tokenizer: TextTokenizer) -> None:
    out = batch(tokenizer, [features(3), features(1)], pad_visual_to=4)
    assert out.visual_mask.tolist() == [[1] * 4] * 2
    assert out.object_index.tolist() == [[0, 1, 2, 3]] * 2
    assert out.image_index.tolist() == [[0] * 4] * 2
    assert out.visual[1].tolist() == [[1, 2], [0, 0], [0, 0], [0, 0]]


# -- text -----------------------------------------------------------------------------------------------------------


def test_text_and_weights(tokenizer: TextTokenizer) -> None:
    out = batch(tokenizer, [features(1)] * 3)
    assert out.task == "vqa"
    assert out.ids == ["q0", "q1", "q2"]
    assert out.input_ids.tolist() == [[0, 4, 9, 2], [0, 5, 9, 2], [0, 6, 9, 2]]
    assert out.labels is not None
    assert out.labels.tolist() == [[0, 50, 2], [0, 51, 2], [0, 52, 2]]
    assert out.weights.tolist() == [0, 0.5, 1]
    assert len(out) == 3


def test_without_targets_there_are_no_labels(tokenizer: TextTokenizer) -> None:
    out = collate("vqa", [Example("q", "w4", ("i",))], None, [features(1)], tokenizer, None, None)
    assert out.labels is None
    assert out.weights.tolist() == [1]


def test_limits_and_cut_reach_the_tokenizer(tokenizer: TextTokenizer) -> None:
    example = Example("q", "w4 w5 w6 w7", ("i",), context=(0, 6))
    arguments = ([example], [("w8 w9 w10", 1.0)], [features(1)], tokenizer, 4, 3)
    assert collate("vqa", *arguments).input_ids.tolist() == [[0, 6, 7, 2]]
    end = collate("vqa", *arguments, cut="end")
    assert end.input_ids.tolist() == [[0, 4, 5, 2]]
    assert end.labels is not None
    assert end.labels.tolist() == [[0, 8, 2]]


def test_a_batch_moves_all_its_tensors(tokenizer: TextTokenizer) -> None:
    moved = batch(tokenizer, [features(2)]).to("meta")
    tensors = [value for value in vars(moved).values() if isinstance(value, torch.Tensor)]
    assert len(tensors) == 9
    assert {t.device.type for t in tensors} == {"meta"}
    assert moved.ids == ["q0"]


# -- drawing a target -----------------------------------------------------------------------------------------------


def answers(weights: tuple[float, ...], identity: str = "q") -> Example:
    return Example(identity, "", (), targets=tuple("abcd"[: len(weights)]), weights=weights)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=4), st.integers(0, 2**40), st.integers(0, 50), st.text())
def test_a_draw_is_a_function_of_seed_epoch_and_id(weights: list[float], seed: int, epoch: int, identity: str) -> None:
    example = answers(tuple(weights), identity)
    target, weight = draw_target(example, seed, epoch)
    assert draw_target(example, seed, epoch) == (target, weight)
    assert weight == dict(zip(example.targets, example.weights, strict=True))[target]
    assert weight > 0 or not any(weights)


def test_draws_are_proportional_to_the_weights() -> None:
    weights, n = (0.3, 0.0, 0.6, 0.9), 6000
    drawn = Counter(draw_target(answers(weights, f"q{i}"), 42, 0)[0] for i in range(n))
    assert drawn["b"] == 0
    wanted = {"a": n / 6, "c": n / 3, "d": n / 2}
    chi_square = sum((drawn[k] - w) ** 2 / w for k, w in wanted.items())
    assert chi_square < 13.8  # two degrees of freedom: exceeded once in a thousand seeds


def test_epochs_and_seeds_draw_independently() -> None:
    examples = [answers((1.0, 1.0), f"q{i}") for i in range(2000)]
    base = [draw_target(e, 0, 0)[0] for e in examples]
    for seed, epoch in ((0, 1), (1, 0), (1, 1)):
        agreement = np.mean([draw_target(e, seed, epoch)[0] == t for e, t in zip(examples, base, strict=True)])
        assert abs(agreement - 0.5) < 0.05


def test_a_single_target_keeps_its_weight() -> None:
    assert draw_target(answers((0.3,)), 0, 0) == ("a", 0.3)


def test_targets_without_weight() -> None:
    assert draw_target(answers((0.0, 0.0)), 0, 0) == ("a", 0.0)


def test_uniform_is_uniform_and_the_same_in_every_process() -> None:
    numbers = np.sort([uniform(0, i) for i in range(4000)])
    assert numbers[0] >= 0
    assert numbers[-1] < 1
    assert np.abs(numbers - np.arange(4000) / 4000).max() < 1.95 / np.sqrt(4000)  # Kolmogorov-Smirnov, p = 0.001
    program = "from vl_peft.collate import uniform; print(repr(uniform(1, 'a', 2)))"
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert float(other.stdout) == uniform(1, "a", 2)
    assert uniform("ab", "c") != uniform("a", "bc")
