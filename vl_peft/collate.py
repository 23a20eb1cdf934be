"""Examples and their features to a Batch."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from vl_peft.batch import Batch, Example
from vl_peft.tokenizer import TextTokenizer

Features = np.ndarray[Any, Any]


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
    features: Sequence[Sequence[Features]],
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
        features: for each example the arrays ``[v, F]`` of its images or its video, pooled already.
        tokenizer: that of the backbone.
        max_source: token limit of the source.
        max_target: token limit of the target.
        cut: see :meth:`TextTokenizer.encode_sources`.
        pad_visual_to: fill each video with zero rows up to this number and attend to them as if they were frames,
            as the published code does; ``None`` pads to the longest and masks the padding.
    """
    input_ids, attention_mask = tokenizer.encode_sources(examples, max_source, cut)
    visual, mask, image_index, object_index = _visual(features, pad_visual_to)
    return Batch(
        task=task,
        ids=[e.id for e in examples],
        input_ids=input_ids,
        attention_mask=attention_mask,
        visual=visual,
        visual_mask=mask,
        image_index=image_index,
        object_index=object_index,
        boxes=torch.zeros(*visual.shape[:2], 4),
        labels=None if targets is None else tokenizer.encode_targets([text for text, _ in targets], max_target),
        weights=torch.tensor([1.0] * len(examples) if targets is None else [weight for _, weight in targets]),
    )


def _visual(
    features: Sequence[Sequence[Features]], pad_to: int | None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    lengths = [sum(len(image) for image in images) for images in features]
    shape = len(features), max(max(lengths), pad_to or 0)
    visual = np.zeros((*shape, features[0][0].shape[1]), dtype=np.float32)
    mask, image_index, object_index = (torch.zeros(shape, dtype=torch.long) for _ in range(3))
    for row, images in enumerate(features):
        start = 0
        for index, image in enumerate(images):
            end = start + len(image)
            visual[row, start:end] = image
            mask[row, start:end] = 1
            image_index[row, start:end] = index
            object_index[row, start:end] = torch.arange(len(image))
            start = end
    if pad_to is not None:
        mask[:] = 1
        object_index[:] = torch.arange(shape[1])
    return torch.from_numpy(visual), mask, image_index, object_index
