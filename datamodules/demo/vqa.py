"""Writes VQAv2: four questions about each COCO image with ten human-like answers each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datamodules.demo.coco import SIZES, KarpathySplit, coco_id, coco_scene, year
from datamodules.demo.facts import Question, a, having, lone, plural
from datamodules.demo.files import Job, scaled, write_json
from datamodules.demo.pretrain_images import absent_pair
from datamodules.demo.world import SHAPES, Scene, generator, pick, shuffled

QUESTIONS = 4  # per image
_FREQUENT = 9  # answers that are right for fewer questions than this are not in the vocabulary

_INFO = {
    "description": "The VQA v2 format, filled with an embedded demo corpus.",
    "url": "http://visualqa.org",
    "version": "2.0",
    "year": 2017,
    "contributor": "demo",
    "date_created": "2017-04-26 17:07:13",
}
_LICENSE = {
    "url": "http://creativecommons.org/licenses/by/4.0/",
    "name": "Creative Commons Attribution 4.0 International License",
}
# What a careless annotator answers instead.
_SLIPS = {
    "red": ("dark red", "orange"), "green": ("dark green", "teal"), "blue": ("dark blue", "navy"),
    "yellow": ("gold", "light yellow"), "purple": ("violet", "pink"), "orange": ("red", "light brown"),
    "white": ("gray", "off white"), "black": ("dark", "gray"),
    "circle": ("round", "dot"), "square": ("box", "rectangle"), "triangle": ("pyramid", "arrow"),
    "star": ("starfish", "5 points"), "cross": ("plus", "x"), "ring": ("circle", "donut"),
    "yes": ("no", "maybe"), "no": ("yes", "not sure"),
    "0": ("1", "none"), "1": ("2", "one"), "2": ("1", "3"), "3": ("2", "4"), "4": ("3", "5"),
}  # fmt: skip


def _color(scene: Scene, rng: np.random.Generator) -> Question | None:
    things = lone(scene.things, "shape")
    if not things:
        return None
    thing = pick(rng, things)
    return Question(f"What color is the {thing.shape}?", thing.color)


def _shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    things = lone(scene.things, "color")
    if not things:
        return None
    thing = pick(rng, things)
    return Question(f"What shape is the {thing.color} object?", thing.shape)


def _count(scene: Scene, rng: np.random.Generator) -> Question | None:
    if rng.random() < 0.25:
        return Question("How many objects are there?", str(len(scene.things)))
    # A count of one is by far the most common; asking for a count first makes the answers nearly equally likely.
    wanted = pick(rng, (0, 1, 2, 2, 3, 3))
    shapes = [s for s in SHAPES if len(having(scene.things, shape=s)) == wanted]
    return Question(f"How many {plural(pick(rng, shapes))} are there?", str(wanted)) if shapes else None


def _exists(scene: Scene, rng: np.random.Generator) -> Question:
    true = bool(rng.random() < 0.5)
    thing = pick(rng, scene.things)
    color, shape = (thing.color, thing.shape) if true else absent_pair(scene.things, rng)
    return Question(f"Is there {a(f'{color} {shape}')} in the picture?", "yes" if true else "no")


_KINDS: tuple[Callable[[Scene, np.random.Generator], Question | None], ...] = (_color, _shape, _count, _exists)


def vqa_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Four different questions, of as many kinds as the scene allows."""
    found: dict[str, Question] = {}
    while len(found) < QUESTIONS:
        for kind in shuffled(rng, _KINDS):
            question = kind(scene, rng)
            if question is not None:
                found.setdefault(question.text, question)
    return list(found.values())[:QUESTIONS]


def _answers(answer: str, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Ten answers, at most two of them slips; so the right one always scores fully."""
    slips = pick(rng, (0, 0, 0, 1, 1, 2))
    texts = shuffled(rng, [answer] * (10 - slips) + [pick(rng, _SLIPS[answer]) for _ in range(slips)])
    return [
        {
            "answer": text,
            "answer_confidence": pick(rng, ("yes", "yes", "yes", "maybe") if text == answer else ("maybe", "no")),
            "answer_id": number,
        }
        for number, text in enumerate(texts, start=1)
    ]


def _kind(question: Question) -> tuple[str, str]:
    """The official ``question_type`` and ``answer_type``."""
    first = question.text.split(" ", 3)
    start = " ".join(first[:3]) if first[0] in ("What", "Is") else "how many"
    if question.answer in ("yes", "no"):
        return "is there a", "yes/no"
    return ("how many", "number") if question.answer.isdigit() else (f"{start.lower()} the", "other")


def vqa_records(seed: int, split: KarpathySplit, index: int) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The questions about one image and their annotations."""
    rng, image = generator(seed, f"vqa-{split}", index), coco_id(split, index)
    questions, annotations = [], []
    for number, question in enumerate(vqa_questions(coco_scene(seed, split, index), rng)):
        question_type, answer_type = _kind(question)
        key = {"image_id": image, "question_id": 1000 * image + number}
        questions.append({**key, "question": question.text})
        annotations.append(
            {
                **key,
                "question_type": question_type,
                "multiple_choice_answer": question.answer,
                "answers": _answers(question.answer, rng),
                "answer_type": answer_type,
            }
        )
    return questions, annotations


def write_vqa(root: Path, seed: int, scale: float) -> None:
    """Write the official question and annotation files of both years, and the answer vocabulary."""
    records = {split: [vqa_records(seed, split, i) for i in range(scaled(n, scale))] for split, n in SIZES.items()}
    common: Counter[str] = Counter()
    for name in ("train2014", "val2014"):
        of_year = [pair for split, pairs in records.items() if year(split) == name for pair in pairs]
        questions = [q for qs, _ in of_year for q in qs]
        annotations = [x for _, xs in of_year for x in xs]
        common.update(x["multiple_choice_answer"] for x in annotations)
        head = {"info": _INFO, "task_type": "Open-Ended", "data_type": "mscoco", "license": _LICENSE}
        head = {**head, "data_subtype": name}
        write_json(root / "vqa" / f"v2_OpenEnded_mscoco_{name}_questions.json", {**head, "questions": questions})
        write_json(root / "vqa" / f"v2_mscoco_{name}_annotations.json", {**head, "annotations": annotations})
    answers = sorted(answer for answer, count in common.items() if count >= min(_FREQUENT, _FREQUENT * scale))
    write_json(root / "vqa" / "trainval_label2ans.json", answers)
    write_json(root / "vqa" / "trainval_ans2label.json", {answer: label for label, answer in enumerate(answers)})


def jobs(root: Path, seed: int, scale: float) -> list[Job]:
    """All work of this writer; its images are those of COCO."""
    return [Job("VQA annotations", 1, write_vqa, (root, seed, scale))]
