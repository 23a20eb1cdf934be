"""Sample predictions in TensorBoard: what the model saw, was asked, should have said and said."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image, ImageDraw, ImageFont, ImageOps

from vl_peft.batch import Batch, Example
from vl_peft.errors import DataError
from vl_peft.features.video import read_frames

WIDTH, MARGIN, FONT_SIZE = 720, 12, 16
VIDEO_SUFFIXES = (".mp4", ".mkv", ".webm", ".avi")


class Pictures(Callback):
    """Logs a few predictions of each benchmark as one picture per validation.

    The picture shows the image, both images of a pair, or a strip of frames where the files are at hand, then the
    input text, the references and the prediction.

    Args:
        per_task: predictions of each benchmark.
    """

    def __init__(self, per_task: int = 4) -> None:
        self.per_task = per_task
        self._samples: dict[str, list[tuple[Example, str]]] = {}

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the last validation's samples."""
        self._samples = {}

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep the first few examples, the same at every validation."""
        samples = self._samples.setdefault(batch.task, [])
        missing = self.per_task - len(samples)
        samples += list(zip(batch.examples, outputs, strict=True))[: max(0, missing)]

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw and log."""
        if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        for task, samples in self._samples.items():
            benchmark = trainer.datamodule.benchmarks[task]  # type: ignore[attr-defined]
            panels = [_panel(benchmark, example, answer) for example, answer in samples]
            picture = np.asarray(_stack(panels))
            trainer.logger.experiment.add_image(f"predictions/{task}", picture, trainer.global_step, dataformats="HWC")


def _panel(benchmark: Any, example: Example, answer: str) -> Image.Image:
    """One prediction: the visual part above, the text below."""
    views = [view for key in example.visuals for view in _views(benchmark, key)]
    references = " | ".join(dict.fromkeys(_text(r) for r in example.references)) or "(hidden)"
    text = [("input", _abridged(example)), ("references", references), ("prediction", answer or "(empty)")]
    lines = [line for label, value in text for line in _wrapped(f"{label}: {value}")]
    font = ImageFont.load_default(FONT_SIZE)
    right = answer.casefold() in {_text(r).casefold() for r in example.references}
    block = Image.new("RGB", (WIDTH, MARGIN + len(lines) * (FONT_SIZE + 6)), "white")
    draw = ImageDraw.Draw(block)
    for i, line in enumerate(lines):
        is_answer = i >= len(lines) - len(_wrapped(f"prediction: {answer or '(empty)'}"))
        color = ("#0a7a2f" if right else "#a33b00") if is_answer else "black"
        draw.text((MARGIN, i * (FONT_SIZE + 6)), line, fill=color, font=font)
    return _stack([_row(views), block]) if views else block


def _views(benchmark: Any, key: str) -> list[Image.Image]:
    """The image, or eight frames of the video; nothing where the file is not there or cannot be read."""
    path = benchmark.media(key)
    if path is None:
        return []
    try:
        if path.suffix not in VIDEO_SUFFIXES:
            with Image.open(path) as image:
                return [image.convert("RGB")]
        frames = read_frames(path)
    except (OSError, DataError):
        return []  # a picture for the eye only: the features were read, and that is what counts
    return [Image.fromarray(frames[i]) for i in np.linspace(0, len(frames) - 1, min(8, len(frames))).astype(int)]


def _row(views: Sequence[Image.Image]) -> Image.Image:
    """Views side by side in the picture's width, none higher than 224 pixels."""
    size = min(224, (WIDTH - MARGIN) // len(views) - MARGIN)
    row = Image.new("RGB", (WIDTH, size + 2 * MARGIN), "white")
    for i, view in enumerate(views):
        row.paste(ImageOps.pad(view, (size, size), color="white"), (MARGIN + i * (size + MARGIN), MARGIN))
    return row


def _stack(parts: Sequence[Image.Image]) -> Image.Image:
    stack = Image.new("RGB", (WIDTH, sum(part.height for part in parts)), "white")
    top = 0
    for part in parts:
        stack.paste(part, (0, top))
        top += part.height
    return stack


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, width=(WIDTH - 2 * MARGIN) * 2 // FONT_SIZE)


def _abridged(example: Example) -> str:
    """The source with a long context shortened, so that the question stays in view."""
    start, end = example.context
    said = textwrap.shorten(example.source[start:end], 300, placeholder=" [...]")
    return example.source[:start] + said + example.source[end:]


def _text(reference: Any) -> str:
    """A reference is a text, or one of VQA's answers."""
    return str(reference["answer"]) if isinstance(reference, dict) else str(reference)
