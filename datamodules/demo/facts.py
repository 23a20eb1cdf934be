"""What is true in a scene: the small queries from which all questions, sentences and captions are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datamodules.demo.world import Thing

SIDES = ("left", "right", "above", "below")
NUMBERS = ("zero", "one", "two", "three", "four")


@dataclass(frozen=True)
class Question:
    """A question with its true answer; ``choices`` and ``subtitles`` only where it has any."""

    text: str
    answer: str
    choices: tuple[str, ...] | None = None
    subtitles: str = ""


def a(phrase: str) -> str:
    """The phrase with its indefinite article, ``"an orange ring"``."""
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def plural(noun: str) -> str:
    """The plural of a shape, ``"crosses"``."""
    return f"{noun}es" if noun.endswith("s") else f"{noun}s"


def full(thing: Thing) -> str:
    """Size, colour and shape, ``"large red star"``."""
    return f"{thing.size} {thing.name}"


def listed(phrases: Sequence[str]) -> str:
    """The phrases joined as in speech, ``"x, y and z"``."""
    return phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"


def having(things: Sequence[Thing], **wanted: str) -> list[Thing]:
    """The things whose attributes have the given values: ``having(things, color="red", shape="star")``."""
    return [t for t in things if all(getattr(t, name) == value for name, value in wanted.items())]


def lone(things: Sequence[Thing], *attributes: str) -> list[Thing]:
    """The things that no other one equals in all of ``attributes``, so that those name them."""
    return [t for t in things if len(having(things, **{name: getattr(t, name) for name in attributes})) == 1]


def beside(thing: Thing, anchor: Thing, side: str) -> bool:
    """Whether ``thing`` lies on that ``side`` of ``anchor``, by the columns or rows of their cells."""
    if side == "left":
        return thing.column < anchor.column
    if side == "right":
        return thing.column > anchor.column
    return thing.row < anchor.row if side == "above" else thing.row > anchor.row


def all_beside(things: Sequence[Thing], anchor: Thing, side: str) -> list[Thing]:
    """The things on that side of ``anchor``."""
    return [t for t in things if beside(t, anchor, side)]
