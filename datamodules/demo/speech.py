"""Who says what: names, the roles they claim, timed subtitles, and answer choices."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from datamodules.demo.video import DIRECTIONS, SECONDS, Clip
from datamodules.demo.world import COLORS, SHAPES, shuffled

WAYS = {d: f"To the {d}." if d in ("left", "right") else f"{d.capitalize()}." for d in DIRECTIONS}


def cast(clip: Clip, names: Sequence[str], rng: np.random.Generator) -> dict[str, str]:
    """Five names with the shapes they claim, in random order: the three visible shapes and two others."""
    visible = [t.shape for t in clip.things]
    absent = shuffled(rng, [s for s in SHAPES if s not in visible])[:2]
    return dict(zip(shuffled(rng, names)[:5], shuffled(rng, visible + absent), strict=True))


def spoken(vid_name: str, lines: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
    """The official subtitle record: each line with a leading space and its seconds, one after the other."""
    slot = SECONDS / max(1, len(lines))
    sub = []
    for number, line in enumerate(lines):
        start = slot * (number + float(rng.uniform(0, 0.3)))
        end = start + slot * float(rng.uniform(0.4, 0.65))
        sub.append({"text": f" {line}", "start": round(start, 3), "end": round(end, 3)})
    return {"vid_name": vid_name, "sub": sub}


def offer(rng: np.random.Generator, answer: str, wrong: Sequence[str], count: int) -> tuple[str, ...]:
    """``count`` distinct choices in random order: the answer, then of ``wrong`` the first ones that differ."""
    distractors = [w for w in dict.fromkeys(wrong) if w != answer][: count - 1]
    return tuple(shuffled(rng, [answer, *distractors]))


def color_choices(clip: Clip, rng: np.random.Generator) -> list[str]:
    """The colours to be seen, then the others, each group in random order."""
    seen = [t.color for t in clip.things]
    return shuffled(rng, seen) + shuffled(rng, [c for c in COLORS if c not in seen])


def shape_choices(clip: Clip, rng: np.random.Generator) -> list[str]:
    """The shapes to be seen, then the others, each group in random order."""
    seen = [t.shape for t in clip.things]
    return shuffled(rng, seen) + shuffled(rng, [s for s in SHAPES if s not in seen])


def thing_choices(clip: Clip, rng: np.random.Generator) -> list[str]:
    """The objects to be seen in random order, then one that shares neither colour nor shape with them."""
    fake = f"{color_choices(clip, rng)[-1]} {shape_choices(clip, rng)[-1]}"
    return [*shuffled(rng, [t.name for t in clip.things]), fake]


def sentence(phrase: str) -> str:
    """The phrase with a capital and a full stop."""
    return f"{phrase[0].upper()}{phrase[1:]}."


def labelled(choices: Sequence[str], answer: str, hidden: bool) -> dict[str, Any]:
    """The fields ``a0``, ``a1``, ... and, unless the answers of the split are hidden, ``answer_idx``."""
    fields: dict[str, Any] = {f"a{i}": choice for i, choice in enumerate(choices)}
    return fields if hidden else fields | {"answer_idx": choices.index(answer)}
