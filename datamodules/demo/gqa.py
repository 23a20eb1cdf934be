"""Writes GQA: compositional questions with their programs, about images of their own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from datamodules.demo.facts import all_beside, beside, having, lone
from datamodules.demo.files import Job, chunks, scaled, write_image, write_json
from datamodules.demo.world import SIZES as THING_SIZES
from datamodules.demo.world import Scene, Split, Thing, generator, pick, render_scene, sample_scene, shuffled

GQASplit = Literal["train", "val", "testdev"]

SIZES: dict[GQASplit, int] = {"train": 800, "val": 120, "testdev": 120}
QUESTIONS = 4  # per image
_WORLD: dict[GQASplit, Split] = {"train": "train", "val": "more", "testdev": "test"}
_SIDE_WORDS = {"left": "to the left of", "right": "to the right of", "above": "above", "below": "below"}
Step = tuple[str, list[int], str]  # operation, the steps it depends on, argument


@dataclass(frozen=True)
class Program:
    """A question, its answers, the steps that find them and the (detailed, semantic, structural) types."""

    text: str
    answer: str
    sentence: str
    steps: tuple[Step, ...]
    types: tuple[str, str, str]
    asked: tuple[Thing, ...]


def _number(scene: Scene, thing: Thing) -> str:
    """The object id of a thing in the scene graph."""
    return str(1000 + scene.things.index(thing))


def _color(scene: Scene, rng: np.random.Generator) -> Program | None:
    found = [
        (anchor, side, size, sized[0])
        for anchor in lone(scene.things, "shape")
        for side in _SIDE_WORDS
        for size in THING_SIZES
        if len(sized := having(all_beside(scene.things, anchor, side), size=size)) == 1
    ]
    if not found:
        return None
    anchor, side, size, thing = pick(rng, found)
    where = f"{_SIDE_WORDS[side]} the {anchor.shape}"
    steps: tuple[Step, ...] = (
        ("select", [], f"{anchor.shape} ({_number(scene, anchor)})"),
        ("relate", [0], f"object,{_SIDE_WORDS[side]},s ({_number(scene, thing)})"),
        ("filter size", [1], size),
        ("query", [2], "color"),
    )
    types = ("directOf", "attr", "query")
    text = f"What color is the {size} object {where}?"
    return Program(text, thing.color, f"The object is {thing.color}.", steps, types, (anchor,))


def _shape(scene: Scene, rng: np.random.Generator) -> Program | None:
    found = [
        (anchor, side, others[0])
        for anchor in scene.things
        for side in _SIDE_WORDS
        if len(others := all_beside(scene.things, anchor, side)) == 1
    ]
    # Scenes of few shapes would make the anchor's own shape the best guess.
    found = [f for f in found if f[2].shape != f[0].shape or rng.random() < 0.45]
    if not found:
        return None
    anchor, side, thing = pick(rng, found)
    where = f"{_SIDE_WORDS[side]} the {anchor.name}"
    steps: tuple[Step, ...] = (
        ("select", [], f"{anchor.shape} ({_number(scene, anchor)})"),
        ("filter color", [0], anchor.color),
        ("relate", [1], f"_,{_SIDE_WORDS[side]},s ({_number(scene, thing)})"),
        ("query", [2], "name"),
    )
    sentence = f"The {thing.shape} is {where}."
    return Program(f"What is {where}?", thing.shape, sentence, steps, ("relS", "rel", "query"), (anchor,))


def _two(scene: Scene, rng: np.random.Generator) -> tuple[Thing, Thing] | None:
    """Two things that their shapes name."""
    things = shuffled(rng, lone(scene.things, "shape"))
    return (things[0], things[1]) if len(things) > 1 else None


def _select_both(scene: Scene, one: Thing, two: Thing) -> tuple[Step, Step]:
    return (
        ("select", [], f"{one.shape} ({_number(scene, one)})"),
        ("select", [], f"{two.shape} ({_number(scene, two)})"),
    )


def _height(scene: Scene, rng: np.random.Generator) -> Program | None:
    things = _two(scene, rng)
    if things is None or things[0].row == things[1].row:
        return None
    one, two = things
    answer = "above" if beside(one, two, "above") else "below"
    steps: tuple[Step, ...] = (*_select_both(scene, one, two), ("choose rel", [0, 1], "above|below"))
    sentence = f"The {one.shape} is {answer} the {two.shape}."
    text = f"Is the {one.shape} above or below the {two.shape}?"
    return Program(text, answer, sentence, steps, ("relChooser", "rel", "choose"), things)


def _same(scene: Scene, rng: np.random.Generator) -> Program | None:
    things = _two(scene, rng)
    if things is None:
        return None
    one, two = things
    same = one.size == two.size
    steps: tuple[Step, ...] = (*_select_both(scene, one, two), ("same size", [0, 1], ""))
    verb = "have" if same else "do not have"
    sentence = f"{'Yes' if same else 'No'}, the {one.shape} and the {two.shape} {verb} the same size."
    text = f"Do the {one.shape} and the {two.shape} have the same size?"
    return Program(text, "yes" if same else "no", sentence, steps, ("twoSame", "attr", "compare"), things)


_KINDS: tuple[Callable[[Scene, np.random.Generator], Program | None], ...] = (_color, _shape, _height, _same)


def gqa_questions(seed: int, split: GQASplit, index: int) -> tuple[Scene, list[Program]]:
    """One image and four different questions, of as many kinds as the scene allows.

    Images that do not allow four questions (two equal shapes side by side) are drawn again.
    """
    rng = generator(seed, f"gqa-{split}", index)
    while True:
        scene = sample_scene(rng, _WORLD[split])
        found: dict[str, Program] = {}
        for kind in [kind for _ in range(4) for kind in shuffled(rng, _KINDS)]:
            program = kind(scene, rng)
            if program is not None:
                found.setdefault(program.text, program)
        if len(found) >= QUESTIONS:
            return scene, list(found.values())[:QUESTIONS]


def image_id(split: GQASplit, index: int) -> str:
    """A Visual Genome number, or ``n<number>`` in testdev."""
    return f"n{100_000 + index}" if split == "testdev" else str({"train": 2_000_000, "val": 2_500_000}[split] + index)


def _spans(text: str, scene: Scene, things: tuple[Thing, ...]) -> dict[str, str]:
    """Word number -> object id, for the things that the words of ``text`` name."""
    words = [word.strip(".,?") for word in text.split()]
    return {str(words.index(t.shape)): _number(scene, t) for t in things if t.shape in words}


def gqa_records(seed: int, split: GQASplit, index: int) -> dict[str, dict[str, Any]]:
    """The official records about one image, by question id."""
    scene, programs = gqa_questions(seed, split, index)
    records = {}
    for number, program in enumerate(programs):
        key = f"{('train', 'val', 'testdev').index(split):02d}{index:05d}{number}"
        arrows = [f"{op}: {arg}" + (f" {after}" if after else "") for op, after, arg in program.steps]
        records[key] = {
            "semantic": [{"operation": op, "dependencies": after, "argument": arg} for op, after, arg in program.steps],
            "entailed": [key],
            "equivalent": [key],
            "question": program.text,
            "imageId": image_id(split, index),
            "isBalanced": True,
            "groups": {"global": None, "local": f"{len(program.text.split()):02d}-{program.types[0]}"},
            "answer": program.answer,
            "semanticStr": "->".join(arrows),
            "annotations": {
                "answer": {},
                "question": _spans(program.text, scene, program.asked),
                "fullAnswer": _spans(program.sentence, scene, program.asked),
            },
            "types": dict(zip(("detailed", "semantic", "structural"), program.types, strict=True)),
            "fullAnswer": program.sentence,
        }
    return records


def write_questions(root: Path, seed: int, split: GQASplit, count: int) -> None:
    """Write the question file of a split."""
    records = {key: record for i in range(count) for key, record in gqa_records(seed, split, i).items()}
    write_json(root / "GQA" / f"{split}_balanced_questions.json", records)


def write_images(folder: Path, seed: int, split: GQASplit, indices: range) -> None:
    """Write some images of a split."""
    for index in indices:
        write_image(folder / f"{image_id(split, index)}.jpg", render_scene(gqa_questions(seed, split, index)[0]))


def jobs(root: Path, seed: int, scale: float) -> list[Job]:
    """All work of this writer."""
    work = []
    for split, size in SIZES.items():
        folder, count = root / ("GQA" if split == "testdev" else "VG") / "images", scaled(size, scale)
        folder.mkdir(parents=True, exist_ok=True)
        work.append(Job("GQA annotations", 1, write_questions, (root, seed, split, count)))
        work += [Job("GQA images", len(r), write_images, (folder, seed, split, r)) for r in chunks(count, 250)]
    return work
