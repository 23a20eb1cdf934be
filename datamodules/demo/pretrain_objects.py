"""Exercises about one object of an image or video, from the plainest form to the fullest.

Mixed questions of many forms do not teach a small model to join what it can do already: to see an attribute of an
object, and to find the label in front of a word. Plain forms, one step after the other, do within some hundred steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, get_args

import numpy as np

from datamodules.demo.facts import a
from datamodules.demo.pretrain_images import spot
from datamodules.demo.pretrain_videos import WAYS, credits_of, new_names
from datamodules.demo.speech import offer
from datamodules.demo.world import COLORS, PLACES, SHAPES, Thing, pick, shuffled

VALUES = {"color": COLORS, "shape": SHAPES, "place": PLACES, "way": WAYS}
LETTERS = "bcdefghkmnpqrtuvwxyz"

Step = Literal["tell", "seen", "match", "named", "choose"]
STEPS: tuple[Step, ...] = get_args(Step)
Traits = Mapping[str, str]  # of one object: size, color, shape, place and, in a video, way


def traits(thing: Thing, **more: str) -> dict[str, str]:
    """What can be said of an object."""
    return {"size": thing.size, "color": thing.color, "shape": thing.shape, "place": thing.place, **more}


def labelled_choices(choices: Sequence[str], rng: np.random.Generator, plain: bool = False) -> tuple[list[str], str]:
    """Labels such as ``k0``, ``k1``, and the text ``"k0: red k1: blue"``; ``plain`` ones are spelt in one way only."""
    letter, first, after, end = "b", 0, ":", ""
    if not plain:
        letter, first = LETTERS[rng.integers(len(LETTERS))], int(rng.integers(2))
        after, end = pick(rng, (":", ":", " ", ")")), pick(rng, (".", "", " ,"))
    labels = [f"{letter}{first + i}" for i in range(len(choices))]
    return labels, " ".join(f"{label}{after} {words}{end}" for label, words in zip(labels, choices, strict=True))


def introduced(shape: str, rng: np.random.Generator) -> tuple[str, str]:
    """A made-up name of an object of this shape, and what is said of it and of up to two others."""
    shapes = [shape, *shuffled(rng, [s for s in SHAPES if s != shape])[: rng.integers(3)]]
    roles = dict(zip(new_names(rng), shapes, strict=False))
    return next(iter(roles)), f"said : {credits_of(dict(shuffled(rng, list(roles.items()))), rng)} "


def exercise(things: Sequence[Traits], step: Step, rng: np.random.Generator, fewest: int = 4) -> tuple[str, str]:
    """Source and target of one exercise about an object that one of its traits tells from the others.

    Args:
        things: all objects of the image or video.
        step: ``tell`` names one trait of the object or all of them; ``seen`` finds the label of the one colour that is
            to be seen at all; ``match`` finds the label of a trait of the object; ``named`` tells of an object whose
            shape has to be read first; ``choose`` finds a label among more choices in any spelling, of objects shown
            or named.
        rng: draws the object and its traits.
        fewest: choices that ``choose`` offers, up to five.
    """
    unique = [
        (thing, by)
        for thing in things
        for by in sorted(thing.keys() - {"size"})
        if sum(other[by] == thing[by] for other in things) == 1
    ]
    shapes = [(thing, by) for thing, by in unique if by == "shape"]
    by_name = shapes and (step == "named" or (step == "choose" and rng.random() < 0.4))
    thing, by = pick(rng, shapes if by_name else unique)
    who, said = introduced(thing["shape"], rng) if by_name else (thing[by], "")
    asked = "color" if step == "seen" else pick(rng, sorted(thing.keys() - {"size", by}))
    if step in ("tell", "named"):
        if rng.random() < 0.5:
            return f"{said}{asked} of {who} ?", thing[asked]
        way = f" going {thing['way']}" if "way" in thing else ""
        name = f"{thing['size']} {thing['color']} {thing['shape']}"
        return f"{said}describe {who}", f"{a(name)} {spot(thing['place'])}{way}"
    seen, rest = [t[asked] for t in shuffled(rng, things)], shuffled(rng, VALUES[asked])
    wrong = [value for value in rest if value not in seen] if step == "seen" else [*seen, *rest]
    count = rng.integers(fewest, 6) if step == "choose" else rng.integers(2, 4)
    choices = offer(rng, thing[asked], wrong, int(count))
    labels, text = labelled_choices(choices, rng, plain=step != "choose")
    head = {"seen": "seen", "match": who}.get(step, f"{said}{asked} of {who}")
    return f"{head} ? {text}{' label' if step == 'choose' else ''}", labels[choices.index(thing[asked])]
