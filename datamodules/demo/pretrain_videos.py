"""Captions and questions about the videos of the pretraining split, in sentences and with names no benchmark uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np

from datamodules.demo.facts import Question, a, full, listed
from datamodules.demo.pretrain_images import spot
from datamodules.demo.speech import cast, color_choices, offer, sentence, shape_choices, thing_choices
from datamodules.demo.video import DIRECTIONS, Clip
from datamodules.demo.world import PLACES, Thing, pick, shuffled

_CHATTER = (
    "what a fine day", "it rains outside", "time for tea", "that was fun", "nobody knows why", "we like to talk",
    "I heard music", "it is 4.15 now", "part 2.30 of 5.45", "now look at this", "take your time", "put it there",
    "let us begin", "this is how we do it",
)  # fmt: skip
_WAYS = {d: d if d in ("up", "down") else f"{d}wards" for d in DIRECTIONS}
WAYS = (*_WAYS.values(), "nowhere")
_EVENTS = {"appears": "shows up late", "disappears": "vanishes"}


def new_names(rng: np.random.Generator) -> list[str]:
    """Five made-up names: whoever learns from them learns to read a name, not to know it."""

    def syllable() -> str:
        end = pick(rng, ("", "", "", *"lmnrstd"))
        return f"{pick(rng, 'bcdfghjklmnprstvwz')}{pick(rng, 'aeiou')}{end}"

    names: dict[str, None] = {}
    while len(names) < 5:
        names[(syllable() + (syllable() if rng.random() < 0.8 else "")).capitalize()] = None
    return list(names)


def way_word(clip: Clip, thing: Thing) -> str:
    """Where an object goes, ``"leftwards"`` or ``"nowhere"``."""
    way = clip.way_of(thing)
    return _WAYS[way] if way else "nowhere"


def video_captions(clip: Clip, rng: np.random.Generator) -> list[str]:
    """Three captions; the first one is dense: every object with size, colour, shape and place, and every event."""
    order = sorted(clip.things, key=lambda t: t.cell)
    dense = "film of " + listed([f"{a(full(t))} {spot(t.place)}" for t in order])
    travel = f"the {clip.mover.name} travels {_WAYS[clip.direction]}"
    dense += f" ; {travel}"
    if clip.bumped is not None:
        dense += f" ; it hits the {clip.bumped.name}"
    if clip.changed is not None and clip.change is not None:
        dense += f" ; the {clip.changed.name} {_EVENTS[clip.change]}"
    staying = pick(rng, clip.still)
    others = [
        f"here we see {listed([a(t.name) for t in shuffled(rng, order)])}",
        f"the {staying.name} stays where it is",
        f"it is the {clip.mover.shape} that travels",
    ]
    if clip.changed is not None and clip.change is not None:
        others.append(f"the {clip.changed.name} {_EVENTS[clip.change]}")
    return [dense, travel, pick(rng, others)]


def credits_of(roles: Mapping[str, str], rng: np.random.Generator) -> str:
    """Subtitles that say who is which shape, mixed with talk."""
    forms = ("{0} is the {1}", "the {1} is called {0}", "{0} plays the {1}", "{0} : my role is the {1}")
    lines = [pick(rng, forms).format(name, shape) for name, shape in roles.items()]
    for _ in range(int(rng.integers(3))):
        speaker = f"{pick(rng, [*roles, *new_names(rng)])} : " if rng.random() < 0.5 else ""
        lines.insert(int(rng.integers(len(lines) + 1)), f"{speaker}{pick(rng, _CHATTER)}")
    return " ".join(f"{line} ." for line in lines)


def _somebody(clip: Clip, roles: Mapping[str, str], rng: np.random.Generator) -> tuple[str, Thing]:
    """A name that was said, and the object that has it."""
    things = {t.shape: t for t in clip.things}
    return pick(rng, [(name, things[shape]) for name, shape in roles.items() if shape in things])


def _place(clip: Clip, roles: Mapping[str, str], rng: np.random.Generator) -> Question:
    thing = pick(rng, clip.things)
    who = f"the {thing.shape}"
    if roles and rng.random() < 0.7:
        who, thing = _somebody(clip, roles, rng)
    wrong = [t.place for t in shuffled(rng, clip.things)] + shuffled(rng, PLACES)
    return Question(f"tell the first place of {who}", thing.place, tuple(wrong))


def _color(clip: Clip, roles: Mapping[str, str], rng: np.random.Generator) -> Question:
    thing = pick(rng, clip.things)
    who = f"the {thing.shape}"
    if roles and rng.random() < 0.7:
        who, thing = _somebody(clip, roles, rng)
    form = pick(rng, ("tell the color of {}", "which color does {} have", "what is the color of {}"))
    return Question(form.format(who), thing.color, tuple(color_choices(clip, rng)))


def _way(clip: Clip, roles: Mapping[str, str], rng: np.random.Generator) -> Question:
    thing = clip.mover if rng.random() < 0.8 else pick(rng, clip.still)
    who = pick(rng, (f"the {thing.shape}", f"the {thing.color} thing"))
    if roles and rng.random() < 0.7:
        who, thing = _somebody(clip, roles, rng)
    form = pick(rng, ("where does {} travel", "tell the direction of {}", "to which side does {} travel"))
    return Question(form.format(who), way_word(clip, thing), WAYS)


def _who(clip: Clip, roles: Mapping[str, str], rng: np.random.Generator) -> Question | None:
    if len(roles) < 5:
        return None
    names = {shape: name for name, shape in roles.items()}
    if rng.random() < 0.5:
        return Question(
            pick(rng, ("who travels", "name the one who moves")), names[clip.mover.shape], tuple(shuffled(rng, roles))
        )
    thing = pick(rng, clip.things)
    return Question(
        pick(rng, ("who is colored {}", "name the one who is {}")).format(thing.color),
        names[thing.shape],
        tuple(shuffled(rng, roles)),
    )


def _traveller(clip: Clip, roles: Mapping[str, str], rng: np.random.Generator) -> Question:
    return Question(
        pick(rng, ("name the thing that travels", "what is it that moves")),
        clip.mover.name,
        tuple(thing_choices(clip, rng)),
    )


def _event(clip: Clip, roles: Mapping[str, str], rng: np.random.Generator) -> Question:
    event = pick(rng, tuple(_EVENTS))
    found = clip.changed.name if clip.changed is not None and clip.change == event else "nothing"
    wrong = ["nothing"] + [t.name for t in shuffled(rng, clip.things)]
    return Question(f"which thing {_EVENTS[event]}", found, tuple(wrong))


def _hit(clip: Clip, roles: Mapping[str, str], rng: np.random.Generator) -> Question:
    found = clip.bumped.name if clip.bumped is not None else "nothing"
    wrong = ["nothing"] + [t.name for t in shuffled(rng, clip.still)]
    return Question(f"what does the {clip.mover.shape} hit", found, tuple(wrong))


def _form(clip: Clip, roles: Mapping[str, str], rng: np.random.Generator) -> Question:
    thing: Thing = pick(rng, clip.things)
    form = pick(rng, ("name the shape that is {}", "what is the shape of the {} object"))
    return Question(form.format(thing.color), thing.shape, tuple(shape_choices(clip, rng)))


def _role(clip: Clip, roles: Mapping[str, str], rng: np.random.Generator) -> Question | None:
    """Only what is said matters: the half of the way to "which color does Kosfa have"."""
    if not roles:
        return None
    name, shape = pick(rng, list(roles.items()))
    if rng.random() < 0.5:
        return Question(f"who plays the {shape}", name, (*shuffled(rng, roles), *new_names(rng)))
    return Question(f"which role has {name}", shape, tuple(shape_choices(clip, rng)))


_KINDS: tuple[Callable[[Clip, Mapping[str, str], np.random.Generator], Question | None], ...] = (
    _color, _color, _color, _way, _way, _place, _place, _who, _role, _traveller, _event, _hit, _form,
)  # fmt: skip


def _finish(question: Question, subtitles: str, rng: np.random.Generator) -> Question:
    """Give most of the questions three to five choices, some of them spelt as sentences, and add the subtitles."""
    if question.choices is None or rng.random() < 0.35:
        return replace(question, choices=None, subtitles=subtitles)
    choices = offer(rng, question.answer, question.choices, int(rng.integers(3, 6)))
    answer = question.answer
    if rng.random() < 0.4:
        choices, answer = tuple(sentence(c) for c in choices), sentence(answer)
    return replace(question, answer=answer, choices=choices, subtitles=subtitles)


def video_questions(clip: Clip, rng: np.random.Generator, count: int = 12) -> list[Question]:
    """``count`` different questions; most have subtitles, and most have choices."""
    found: dict[str, Question] = {}
    everybody = cast(clip, new_names(rng), rng)
    visible = [(name, shape) for name, shape in everybody.items() if shape in [t.shape for t in clip.things]]
    roles = everybody if rng.random() < 0.25 else dict([pick(rng, visible)])
    while len(found) < count:
        spoken = bool(rng.random() < 0.75)
        question = pick(rng, _KINDS)(clip, roles if spoken else {}, rng)
        if question is not None and question.text not in found:
            found[question.text] = _finish(question, credits_of(roles, rng) if spoken else "", rng)
    return list(found.values())
