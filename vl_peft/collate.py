"""Examples and their features to a Batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

from vl_peft.batch import Batch, Example, PictureLayout
from vl_peft.errors import DataError
from vl_peft.features.pooling import pool_grid, pool_time
from vl_peft.features.store import FeatureStore
from vl_peft.tokenizer import TextTokenizer

Features = np.ndarray[Any, Any]


class Visual(NamedTuple):
    """One image or video as visual tokens: features ``[v, F]`` and, of image regions, their boxes ``[v, 4]``."""

    features: Features
    boxes: Features | None = None


NOT_YET = Visual(np.zeros((0, 1), dtype=np.float32))
"""An image or video whose features the model is to make: it has no visual tokens yet."""


def shortened(
    store: FeatureStore, key: str, features: Features, kind: Literal["grid", "frames"], tokens: int
) -> Visual:
    """Features ``[V, F]`` read from a store, at most ``tokens`` of them: the first regions, or a pooled grid or video.

    Raises:
        DataError: if they cannot be pooled, or their boxes cannot be used.
    """
    boxes = store.boxes(key)
    if boxes is not None:
        return Visual(features[:tokens], boxes[:tokens])
    try:
        return Visual((pool_grid if kind == "grid" else pool_time)(features, tokens))
    except ValueError as error:
        raise DataError(store.path, str(error), key) from error


def uniform(*key: object) -> float:
    """A number in [0, 1) that is a pure function of the key, the same in every process and on every machine."""
    digest = hashlib.blake2b("\0".join(map(str, key)).encode(), digest_size=8).digest()
    return (int.from_bytes(digest, "big") >> 11) / 2**53


def draw_target(example: Example, seed: int, epoch: int) -> tuple[str, float]:
    """One target of the example and its weight, with probability proportional to the weights, anew every epoch."""
    total = sum(example.weights)
    if len(example.targets) == 1 or total <= 0:
        return example.targets[0], example.weights[0]
    threshold = uniform(seed, epoch, example.id) * total
    for target, weight in zip(example.targets, example.weights, strict=True):
        threshold -= weight
        if threshold < 0:
            return target, weight
    return example.targets[-1], example.weights[-1]


def collate(
    task: str,
    examples: Sequence[Example],
    targets: Sequence[tuple[str, float]] | None,
    visuals: Sequence[Sequence[Visual]],
    tokenizer: TextTokenizer,
    max_source: int | None,
    max_target: int | None,
    cut: Literal["context", "end"] = "context",
    pad_visual_to: int | None = None,
) -> Batch:
    """Join B examples of one task.

    Args:
        task: the task's name.
        examples: the B examples.
        targets: a text and its loss weight for each example; ``None`` makes a batch without labels.
        visuals: for each example its images or its video, shortened already.
        tokenizer: that of the backbone.
        max_source: token limit of the source.
        max_target: token limit of the target.
        cut: see :meth:`TextTokenizer.encode_sources`.
        pad_visual_to: fill each video with zero rows up to this number and attend to them as if they were frames,
            as the published code does; ``None`` pads to the longest and masks the padding.
    """
    input_ids, attention_mask = tokenizer.encode_sources(examples, max_source, cut)
    places = place([[len(visual.features) for visual in row] for row in visuals], pad_visual_to)
    return Batch(
        task=task,
        ids=[e.id for e in examples],
        input_ids=input_ids,
        attention_mask=attention_mask,
        visual=_joined([[visual.features for visual in row] for row in visuals], places.mask.shape[1]),
        visual_mask=places.mask,
        image_index=places.image_index,
        object_index=places.object_index,
        boxes=_joined([[_boxes(visual) for visual in row] for row in visuals], places.mask.shape[1]),
        labels=None if targets is None else tokenizer.encode_targets([text for text, _ in targets], max_target),
        weights=torch.tensor([1.0] * len(examples) if targets is None else [weight for _, weight in targets]),
    )


def with_pictures(
    batch: Batch,
    pictures: Sequence[Sequence[Features]],
    kind: Literal["grid", "frames"],
    tokens: int,
    pad_to: int | None,
    ablate: bool,
) -> Batch:
    """The batch with pictures, uint8 ``[n, 3, S, S]`` for each image or video of each example: see PictureLayout."""
    counts = tuple(tuple(map(len, row)) for row in pictures)
    joined = torch.from_numpy(np.concatenate([part for row in pictures for part in row]))
    return replace(batch, pictures=joined, layout=PictureLayout(counts, kind, tokens, pad_to, ablate))


class Places(NamedTuple):
    """Where visual tokens stand in a batch: int64 ``[B, V]`` each, with the meaning that they have in a Batch."""

    mask: torch.Tensor
    image_index: torch.Tensor
    object_index: torch.Tensor


def place(lengths: Sequence[Sequence[int]], pad_to: int | None) -> Places:
    """Put the images of each example side by side and pad to the longest, or to ``pad_to``: see :func:`collate`.

    Args:
        lengths: number of visual tokens of each image or video of each example.
        pad_to: as ``pad_visual_to`` there.
    """
    shape = len(lengths), max(max(map(sum, lengths)), pad_to or 0)
    mask, image_index, object_index = (np.zeros(shape, dtype=np.int64) for _ in range(3))
    for row, images in enumerate(lengths):
        start = 0
        for index, length in enumerate(images):
            end = start + length
            mask[row, start:end] = 1
            image_index[row, start:end] = index
            object_index[row, start:end] = np.arange(length)
            start = end
    if pad_to is not None:
        mask[:] = 1
        object_index[:] = np.arange(shape[1])
    return Places(*map(torch.from_numpy, (mask, image_index, object_index)))


def _joined(arrays: Sequence[Sequence[Features]], length: int) -> torch.Tensor:
    """Each example's arrays ``[v, n]`` one after the other: float32 ``[B, length, n]``, zeros at the end."""
    joined = torch.zeros(len(arrays), length, arrays[0][0].shape[1])
    for row, parts in enumerate(arrays):
        start = 0
        for part in parts:
            # torch makes float32 of float16 many times as fast as NumPy; from_numpy would warn of a read-only array.
            joined[row, start : start + len(part)] = from_dlpack(part)
            start += len(part)
    return joined


def _boxes(visual: Visual) -> Features:
    return np.zeros((len(visual.features), 4), np.float32) if visual.boxes is None else visual.boxes
