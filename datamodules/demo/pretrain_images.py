"""Captions and questions about the images of the pretraining split, in sentences no benchmark uses."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from datamodules.demo.facts import NUMBERS, SIDES, Question, a, all_beside, beside, full, having, listed, lone, plural
from datamodules.demo.speech import offer
from datamodules.demo.world import COLORS, PLACES, SHAPES, Scene, Thing, pick, shuffled

_SIDE_WORDS = {"left": "left of", "right": "right of", "above": "higher than", "below": "lower than"}


def spot(place: str) -> str:
    """A place as an adverb, ``"at the top left"``."""
    return f"{'in' if place == 'center' else 'at'} the {place}"


def image_captions(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Three captions; the first one is dense: every object with size, colour, shape and place."""
    order = sorted(scene.things, key=lambda t: t.cell)
    dense = "picture of " + listed([f"{a(full(t))} {spot(t.place)}" for t in order])
    first, second = shuffled(rng, scene.things)[:2]
    side = pick(rng, [s for s in SIDES if beside(first, second, s)])
    partial = [
        f"{NUMBERS[len(order)]} things, one of them {a(full(first))}",
        f"here we see {listed([a(t.name) for t in shuffled(rng, order)])}",
        f"{a(full(second))} {spot(second.place)} and others",
    ]
    return [dense, f"{a(first.name)} lies {_SIDE_WORDS[side]} {a(second.name)}", pick(rng, partial)]


def _color(scene: Scene, rng: np.random.Generator) -> Question | None:
    things = lone(scene.things, "shape")
    if not things:
        return None
    thing = pick(rng, things)
    form = pick(rng, ("tell the color of the {}", "which color does the {} have", "what is the color of the {}"))
    return Question(form.format(thing.shape), thing.color)


def _shape(scene: Scene, rng: np.random.Generator) -> Question | None:
    things = lone(scene.things, "color")
    if not things:
        return None
    thing = pick(rng, things)
    form = pick(rng, ("name the shape that is {}", "what is the shape of the {} object", "the {} thing is a"))
    return Question(form.format(thing.color), thing.shape)


def _count(scene: Scene, rng: np.random.Generator) -> Question:
    target = pick(rng, range(1, 4))
    counts = {shape: len(having(scene.things, shape=shape)) for shape in shuffled(rng, SHAPES)}
    shape = min(counts, key=lambda s: abs(counts[s] - target))
    total, form = len(scene.things), pick(rng, ("count the {}", "give the number of {}", "how many {} can you see"))
    if rng.random() < 0.3:
        return Question(form.format("things"), NUMBERS[total])
    color = pick(rng, scene.things).color
    if rng.random() < 0.3:
        return Question(form.format(f"{color} things"), NUMBERS[len(having(scene.things, color=color))])
    return Question(form.format(plural(shape)), NUMBERS[counts[shape]])


def absent_pair(things: Sequence[Thing], rng: np.random.Generator) -> tuple[str, str]:
    """A (colour, shape) that no object has; where possible both occur in the image, on different objects."""
    present = {(t.color, t.shape) for t in things}
    mixed = [(x.color, y.shape) for x in things for y in things if (x.color, y.shape) not in present]
    if mixed and rng.random() < 0.75:
        return pick(rng, mixed)
    return pick(rng, [(c, s) for c in COLORS for s in SHAPES if (c, s) not in present])


def _claim(scene: Scene, rng: np.random.Generator) -> Question:
    true = bool(rng.random() < 0.5)
    thing = pick(rng, scene.things)
    color, shape = (thing.color, thing.shape) if true else absent_pair(scene.things, rng)
    form = pick(rng, ("true or false: the picture has {}", "true or false: {} can be seen", "can you see {} here"))
    answers = ("yes", "no") if form.startswith("can") else ("true", "false")
    return Question(form.format(a(f"{color} {shape}")), answers[not true])


def _neighbour(scene: Scene, rng: np.random.Generator) -> Question | None:
    found = [
        (anchor, side, others[0])
        for anchor in scene.things
        for side in SIDES
        if len(others := all_beside(scene.things, anchor, side)) == 1
    ]
    if not found:
        return None
    anchor, side, other = pick(rng, found)
    form = pick(rng, ("what lies {} the {}", "name the object that is {} the {}"))
    return Question(form.format(_SIDE_WORDS[side], anchor.name), other.name)


def _place(scene: Scene, rng: np.random.Generator) -> Question:
    thing = pick(rng, scene.things)
    if rng.random() < 0.5:
        return Question(f"tell the place of the {thing.name}", thing.place)
    return Question(f"which thing is {spot(thing.place)}", thing.name)


def _emptiness(scene: Scene, rng: np.random.Generator) -> Question:
    full_cells, empty = [t.cell for t in scene.things], bool(rng.random() < 0.5)
    cell = pick(rng, [c for c in range(9) if (c not in full_cells) == empty])
    return Question(f"true or false: nothing is {spot(PLACES[cell])}", "true" if empty else "false")


def _size(scene: Scene, rng: np.random.Generator) -> Question:
    thing = pick(rng, scene.things)
    return Question(pick(rng, ("how big is the {}", "tell the size of the {}")).format(thing.name), thing.size)


def _compare(scene: Scene, rng: np.random.Generator) -> Question:
    one, two = shuffled(rng, scene.things)[:2]
    same = one.size == two.size
    return Question(f"the {one.name} and the {two.name}: equally big or not", "equal" if same else "not equal")


def _order(scene: Scene, rng: np.random.Generator) -> Question | None:
    one, two = shuffled(rng, scene.things)[:2]
    side = pick(rng, SIDES)
    if not (beside(one, two, side) or beside(two, one, side)):
        return None
    text = f"which one is {_SIDE_WORDS[side]} the other: the {one.name} or the {two.name}"
    return Question(text, one.name if beside(one, two, side) else two.name)


_KINDS: tuple[Callable[[Scene, np.random.Generator], Question | None], ...] = (
    _color, _color, _shape, _shape, _count, _count, _claim, _claim, _neighbour, _neighbour,
    _place, _emptiness, _size, _compare, _order,
)  # fmt: skip


def image_questions(scene: Scene, rng: np.random.Generator, count: int = 8) -> list[Question]:
    """``count`` different questions, each with one true answer in the scene; some offer choices."""
    found: dict[str, Question] = {}
    while len(found) < count:
        question = pick(rng, _KINDS)(scene, rng)
        if question is not None and question.text not in found:
            found[question.text] = _with_choices(question, scene, rng)
    return list(found.values())


def _with_choices(question: Question, scene: Scene, rng: np.random.Generator) -> Question:
    """Half of the questions on a colour, shape, place or object offer others of their kind, the visible ones first."""
    things = shuffled(rng, scene.things)
    kinds = [
        [t.color for t in things] + shuffled(rng, COLORS),
        [t.shape for t in things] + shuffled(rng, SHAPES),
        [t.place for t in things] + shuffled(rng, PLACES),
        [t.name for t in things] + [f"{c} {s}" for c, s in zip(shuffled(rng, COLORS), SHAPES, strict=False)],
    ]
    wrong = next((kind for kind in kinds if question.answer in kind), None)
    if wrong is None or rng.random() < 0.5:
        return question
    return replace(question, choices=offer(rng, question.answer, wrong, int(rng.integers(3, 6))))
