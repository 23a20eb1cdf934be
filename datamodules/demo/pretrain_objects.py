"""Exercises about one object of an image or video, from the plainest form to the fullest.

Mixed questions of many forms do not teach a small model to join what it can do already: to see an attribute of an
object, and to find the label in front of a word. Plain forms, one step after the other, do within some hundred steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from datamodules.demo.facts import a
from datamodules.demo.pretrain_images import spot
from datamodules.demo.pretrain_videos import WAYS
from datamodules.demo.speech import offer
from datamodules.demo.world import COLORS, PLACES, SHAPES, Thing, pick, shuffled

VALUES = {"color": COLORS, "shape": SHAPES, "place": PLACES, "way": WAYS}
LETTERS = "bcdefghkmnpqrtuvwxyz"

Step = Literal["tell", "match", "choose"]
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


def exercise(things: Sequence[Traits], step: Step, rng: np.random.Generator) -> tuple[str, str]:
    """Source and target of one exercise about an object that one of its traits tells from the others.

    Args:
        things: all objects of the image or video.
        step: ``tell`` names one trait of the object or all of them, ``match`` finds the label of what is seen in a
            plain text, ``choose`` finds it among more choices in any spelling.
        rng: draws the object and its traits.
    """
    unique = [
        (thing, by)
        for thing in things
        for by in sorted(thing.keys() - {"size"})
        if sum(other[by] == thing[by] for other in things) == 1
    ]
    thing, by = pick(rng, unique)
    asked = pick(rng, sorted(thing.keys() - {"size", by}))
    if step == "tell":
        if rng.random() < 0.5:
            return f"{asked} of {thing[by]} ?", thing[asked]
        way = f" going {thing['way']}" if "way" in thing else ""
        name = f"{thing['size']} {thing['color']} {thing['shape']}"
        return f"describe {thing[by]}", f"{a(name)} {spot(thing['place'])}{way}"
    seen, rest = [t[asked] for t in shuffled(rng, things)], shuffled(rng, VALUES[asked])
    head, wrong, most = thing[by], [*seen, *rest], 4
    if step == "choose":
        head, most = f"{asked} of {thing[by]}", 6
    elif rng.random() < 0.4:  # the plainest: only one of the choices is to be seen at all
        head, wrong = "seen", [value for value in rest if value not in seen]
    choices = offer(rng, thing[asked], wrong, int(rng.integers(most - 2, most)))
    labels, text = labelled_choices(choices, rng, plain=step == "match")
    return f"{head} ? {text}{' label' if step == 'choose' else ''}", labels[choices.index(thing[asked])]
