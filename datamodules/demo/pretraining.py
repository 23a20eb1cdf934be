"""The pretraining split of the demo corpus as benchmarks: captions, masked text and questions.

They pretrain the demo backbone (``make pretrain-demo``); no benchmark's wording, names or labels occur in them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.base import Benchmark
from datamodules.demo.pretrain_objects import STEPS, Step, exercise, labelled_choices
from datamodules.demo.pretrain_videos import credits_of, new_names
from datamodules.demo.world import SHAPES, pick, shuffled
from datamodules.loading import Form, Split
from datamodules.records import Record, read_lines
from vl_peft.batch import Example, Generation, Task
from vl_peft.collate import uniform
from vl_peft.metrics import CaptionMetrics, ExactMatch, SentenceMetric

Kind = Literal["image", "video"]
MASK = "<mask>"
EXERCISES = 6  # about each image or video


class Pretraining(Benchmark):
    """One objective on the pretraining images or videos.

    Args:
        objective: ``caption`` describes; ``mask`` restores a caption of which 15 to 75 % of the words are masked;
            ``tell``, ``seen``, ``match``, ``named`` and ``choose`` are exercises about one object;
            ``question`` answers one to three questions about an image, or one about a video; ``pair`` answers a
            question about the left or right of two images; ``lookup`` finds in the text what is asked for, a choice by
            its label or a name by its role, and needs no look.
        kind: about images or about videos.
        fewest_choices: of the exercises' last step, up to five.
        all_captions: use all three captions of each, not only the dense one.
        **shared: options of every benchmark.
    """

    prompt = ""
    max_source = 220
    max_target = 80
    visual_tokens = 36

    def __init__(
        self,
        objective: Step | Literal["caption", "mask", "question", "pair", "lookup"],
        kind: Kind = "image",
        fewest_choices: int = 4,
        all_captions: bool = False,
        **shared: Any,
    ) -> None:
        self.objective, self.kind, self.all_captions = objective, kind, all_captions
        self.fewest_choices = fewest_choices
        self.visual_kind = "grid" if kind == "image" else "frames"  # type: ignore[misc]
        self.task = Task(  # type: ignore[misc]
            f"{kind}_{objective}", reduction="token", generation=Generation(num_beams=1, max_length=80)
        )
        super().__init__(**shared)

    def feature_folder(self, split: Split) -> str:
        """Beside the images or videos."""
        return f"pretrain/features/{self.kind}/{{encoder}}"

    def metric(self) -> SentenceMetric:
        """CIDEr for what is written freely, exact match for answers."""
        return CaptionMetrics() if self.objective in ("caption", "mask") else ExactMatch()

    def files(self, split: Split) -> Mapping[Form, Sequence[Path]]:
        """One file for all splits."""
        name = "questions" if self.objective in ("question", "pair", "lookup") else "captions"
        return {"official": [self.root / f"pretrain/{name}.jsonl"]}

    def read(self, split: Split) -> Iterator[Example]:
        """The records of this kind; ``test`` is the held-out part, as ``val``."""
        (file,) = self.files(split)["official"]
        wanted = "train" if split == "train" else "val"
        records = (
            r for r in read_lines(file) if r.require("kind", str) == self.kind and r.require("split", str) == wanted
        )
        if self.objective in STEPS:
            return self._exercises(records, self.objective)
        if file.stem == "captions":
            return self._captions(records)
        by_visual = [list(group) for _, group in groupby(records, lambda r: str(r.require("id")))]
        if self.objective == "lookup":
            return self._lookups(by_visual)
        return self._pairs(by_visual) if self.objective == "pair" else self._questions(by_visual)

    def _captions(self, records: Iterator[Record]) -> Iterator[Example]:
        for record in records:
            captions = record.require("captions", list)
            for i, caption in enumerate(captions if self.all_captions else captions[:1]):
                key = f"{record.fields['id']}-{i}"
                dense = "describe all" if i == 0 else "describe"
                source = dense if self.objective == "caption" else f"restore {_masked(caption, key)}"
                yield self._example(key, source, caption, str(record.fields["id"]))

    def _exercises(self, records: Iterator[Record], step: Step) -> Iterator[Example]:
        for record in records:
            for i in range(EXERCISES):
                key = f"{record.fields['id']}-{i}"
                rng = np.random.default_rng(int(uniform(step, key) * 2**53))
                source, target = exercise(record.require("things", list), step, rng, self.fewest_choices)
                yield self._example(key, source, target, str(record.fields["id"]))

    def _questions(self, by_visual: Sequence[list[Record]]) -> Iterator[Example]:
        for records in by_visual:
            sizes = (3, 2, 1, 1, 1) if self.kind == "image" else (1,) * len(records)
            start = 0
            for size in sizes:
                group, start = records[start : start + size], start + size
                if group:
                    key = f"{group[0].fields['id']}-{start}"
                    posed = [_posed(record, key) for record in group]
                    source, target = " ? ".join(q for q, _ in posed), " , ".join(a for _, a in posed)
                    yield self._example(key, f"{source} ?", target, str(group[0].fields["id"]))

    def _pairs(self, by_visual: Sequence[list[Record]]) -> Iterator[Example]:
        for i, records in enumerate(by_visual):
            for record in records[:1]:
                key = f"{record.fields['id']}-{record.fields['question']}"
                other = by_visual[(i + 1 + int(uniform("partner", key) * (len(by_visual) - 1))) % len(by_visual)]
                question, answer = _posed(record, key)
                ids = [str(record.fields["id"]), str(other[0].fields["id"])]
                side = "left" if uniform("side", key) < 0.5 else "right"
                visuals = ids if side == "left" else ids[::-1]
                yield self._example(key, f"{side} picture : {question} ?", answer, *visuals)

    def _lookups(self, by_visual: Sequence[list[Record]]) -> Iterator[Example]:
        for records in by_visual:
            for record in records:
                key = f"{record.fields['id']}-{record.fields['question']}"
                rng = np.random.default_rng(int(uniform("lookup", key) * 2**53))
                choices = record.fields.get("choices")
                source, target = _choice_lookup(choices, rng) if choices else _role_lookup(rng)
                yield self._example(key, source, target, str(record.fields["id"]))

    def _example(self, key: str, source: str, target: str, *visuals: str) -> Example:
        return Example(key, source, visuals, (target,), (1.0,), (target,))


def _masked(caption: str, key: str) -> str:
    rate = 0.15 + 0.6 * uniform("rate", key)
    return " ".join(MASK if uniform("mask", key, i) < rate else word for i, word in enumerate(caption.split()))


def _choice_lookup(choices: Sequence[str], rng: np.random.Generator) -> tuple[str, str]:
    """Which label has these words, or which words have this label.

    From the plainest form to the most varied: the plain ones are learnt first, and without them the others are not.
    """
    plain = rng.random() < 0.4
    choices = choices[: int(rng.integers(2, 4))] if plain else choices
    labels, offered = labelled_choices(choices, rng, plain)
    i = int(rng.integers(len(choices)))
    if plain:
        return f"{choices[i]} ? {offered}", labels[i]
    if rng.random() < 0.3:
        return f"find {labels[i]} ? {offered} words", choices[i]
    return f"find {choices[i].rstrip('.')} ? {offered} label", labels[i]


def _role_lookup(rng: np.random.Generator) -> tuple[str, str]:
    """Which role a name has, or whose a role is."""
    names, shapes = new_names(rng), shuffled(rng, SHAPES)
    roles = dict(list(zip(names, shapes, strict=False))[: int(rng.integers(1, 6))])
    name, shape = pick(rng, list(roles.items()))
    said = f"said : {credits_of(roles, rng)}"
    if rng.random() < 0.8:
        return f"{said} which role has {name} ?", shape
    return f"{said} who plays the {shape} ?", name


def _posed(record: Record, key: str) -> tuple[str, str]:
    """A question as text, and its answer: in words, or as the label of the right choice."""
    question, answer = str(record.require("question", str)), str(record.require("answer", str))
    subtitles, choices = record.fields.get("subtitles"), record.fields.get("choices")
    before = f"said : {subtitles} " if subtitles else ""
    if not choices:
        return f"{before}{question}", answer
    rng = np.random.default_rng(int(uniform("labels", key) * 2**53))
    labels, offered = labelled_choices(choices, rng)
    by_label = rng.random() < 0.8
    target = labels[choices.index(answer)] if by_label else answer
    return f"{before}{question} ? {offered} {'label' if by_label else 'words'}", target
