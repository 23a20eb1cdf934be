"""What flows through the package: ``Task`` (a benchmark seen from the model), ``Example`` (a record), ``Batch``.

Shape letters, used everywhere: B examples, L source tokens, T target tokens, V visual tokens, F feature size,
D model size.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class Generation:
    """How text is generated for evaluation; the names are those of ``transformers.GenerationConfig``."""

    num_beams: int = 1
    max_length: int = 20
    no_repeat_ngram_size: int = 0
    early_stopping: bool = False


@dataclass(frozen=True)
class Task:
    """What the model has to know of a benchmark.

    Attributes:
        name: the key of the task in a configuration, in logs and in files.
        reduction: ``"sequence"`` averages the loss over the tokens of each target, times its weight, then over the
            batch; ``"token"`` averages over all target tokens of the batch.
        generation: settings for generating an answer.
        candidates: if given, nothing is generated: the answer is the candidate whose first token has the highest
            logit (ties go to the first one named).
    """

    name: str
    reduction: Literal["sequence", "token"] = "sequence"
    generation: Generation = Generation()
    candidates: tuple[str, ...] = ()


@dataclass  # not frozen, nor what else is in a batch: Lightning could not convert it for bf16-true
class Example:
    """One record of one benchmark: plain data, picklable, nothing tokenized.

    Attributes:
        id: unique within the benchmark's split; metrics and submissions are keyed by it.
        source: the whole input text, prompt included.
        visuals: keys in the feature store: one image, the two of NLVR2, or one video.
        targets: the texts one may train on; one is drawn per epoch with probability proportional to its weight.
        weights: weight of each target, which is also the loss weight when it is drawn.
        references: what the metric compares with: captions, the ten answers, the right choice.
        context: ``source[start:end]`` may be cut when the text is too long (subtitles); ``(0, 0)`` cuts at the end.
        meta: further facts for the metric and the submission (question type, show, clip id).
    """

    id: str
    source: str
    visuals: tuple[str, ...]
    targets: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    references: tuple[Any, ...] = ()
    context: tuple[int, int] = (0, 0)
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class PictureLayout:
    """What is to be made of a batch's pictures.

    Attributes:
        counts: of each example, for each of its images or its video: how many of the pictures, in order, are its own.
        kind: ``"grid"`` makes a grid of visual tokens of each picture, ``"frames"`` one visual token.
        tokens: the most visual tokens of an image or video; longer ones are pooled.
        pad_to: as ``pad_visual_to`` of :func:`vl_peft.collate.collate`.
        ablate: replace the features by zeros.
    """

    counts: tuple[tuple[int, ...], ...]
    kind: Literal["grid", "frames"]
    tokens: int
    pad_to: int | None = None
    ablate: bool = False


@dataclass
class Batch:
    """Collated examples of one task.

    Attributes:
        task: the task's name; of a batch that mixes tasks, the names of all of them.
        ids: B example ids.
        input_ids: int64 ``[B, L]``; attention_mask: int64 ``[B, L]``, 1 for tokens.
        visual: float32 ``[B, V, F]``; visual_mask: int64 ``[B, V]``, 1 for real visual tokens.
        image_index: int64 ``[B, V]``, which of the example's images a visual token belongs to (0 or 1).
        object_index: int64 ``[B, V]``, the token's place within its image or video, from 0.
        boxes: float32 ``[B, V, 4]``, (x1, y1, x2, y2) of image regions in the unit square; zeros for grids and frames.
        labels: int64 ``[B, T]``, -100 where there is no label; ``None`` when only generating.
        weights: float32 ``[B]``, loss weight of each example.
        examples: the B examples themselves in evaluation, for the metric; empty in training.
        row_tasks: the task of each row, if the batch mixes tasks. Names, which need no agreement on an order and stay
            on the CPU; rows of one task side by side cost the least.
        unreadable: keys whose features could not be read, and why; zeros took their place.
        pictures: uint8 ``[N, 3, S, S]``, images or frames of which the model is to make the visual tokens; V is 0 until
            then. ``None`` where features were read.
        layout: what to make of them.
    """

    task: str
    ids: list[str]
    input_ids: Tensor
    attention_mask: Tensor
    visual: Tensor
    visual_mask: Tensor
    image_index: Tensor
    object_index: Tensor
    boxes: Tensor
    labels: Tensor | None
    weights: Tensor
    examples: list[Example] = field(default_factory=list)
    row_tasks: tuple[str, ...] = ()
    unreadable: Mapping[str, str] = field(default_factory=dict)
    pictures: Tensor | None = None
    layout: PictureLayout | None = None

    @property
    def tasks(self) -> tuple[str, ...]:
        """The task of each row, or the one of all."""
        return self.row_tasks or (self.task,)

    def __len__(self) -> int:
        return len(self.ids)

    def _map(self, move: Any) -> Batch:
        tensors = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: move(v) for k, v in tensors.items() if isinstance(v, torch.Tensor)})

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on ``device``."""
        return self._map(lambda t: t.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Batch:
        """The same batch with its tensors in page-locked memory (called by the DataLoader)."""
        return self._map(lambda t: t.pin_memory())
