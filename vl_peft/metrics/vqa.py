"""VQA accuracy (https://visualqa.org/evaluation): ten people answered, three who agree with the model are enough."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, get_args

from vl_peft.errors import ConfigError
from vl_peft.metrics.accuracy import percent
from vl_peft.metrics.base import Record, SentenceMetric

Variant = Literal["official", "published"]

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGIT_COMMA = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The official script passes a flag in the place of a count, so no more than 32 periods are ever removed.
_MAX_PERIODS = 32
_NUMBERS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5", "six": "6", "seven": "7",
    "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
_ARTICLES = frozenset(("a", "an", "the"))
_CONTRACTED = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
""".split()  # noqa: SIM905 - one per line would be a hundred lines
# Each of these is found again with any one of its apostrophes missing; "somebody'd" is an oddity of the official table.
_CONTRACTIONS = {
    word[:place] + word[place + 1 :]: word
    for word in _CONTRACTED
    for place, character in enumerate(word)
    if character == "'"
} | {"somebody'd": "somebodyd"}


def _strip(answer: str) -> str:
    return answer.replace("\n", " ").replace("\t", " ").strip()


@lru_cache(maxsize=1 << 16)
def _remove_punctuation(answer: str) -> str:
    glued = _DIGIT_COMMA.search(answer) is not None  # "1,000": then every mark is deleted, not replaced by a space
    result = answer
    for mark in _PUNCTUATION:
        delete = glued or f"{mark} " in answer or f" {mark}" in answer
        result = result.replace(mark, "" if delete else " ")
    return _PERIOD.sub("", result, count=_MAX_PERIODS)


@lru_cache(maxsize=1 << 16)
def normalise_answer(answer: str) -> str:
    """The official normal form: no punctuation or articles, digits for numbers, apostrophes in contractions.

    >>> normalise_answer("The Dogs dont have two-tone coats.")
    "dogs don't have 2 tone coats"
    """
    words = (_NUMBERS.get(word, word) for word in _remove_punctuation(_strip(answer)).lower().split())
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def soft_scores(answers: Sequence[str]) -> dict[str, float]:
    """The VQA accuracy each of ten given answers would get: 0.3, 0.6, 0.9 or 1 for one, two, three or more votes.

    The strings are compared as they are; normalise them first if need be.

    >>> soft_scores(["net"] * 7 + ["mesh"] + ["netting"] * 2)
    {'net': 1.0, 'mesh': 0.3, 'netting': 0.6}
    """
    ladder = (0.3, 0.6, 0.9, 1.0)
    return {answer: ladder[min(votes, 4) - 1] for answer, votes in Counter(answers).items()}


class VQAAccuracy(SentenceMetric):
    """Mean over questions of the accuracy averaged over nine of the ten people: min(1, number who agree / 3).

    References are the ten official answers (dicts with ``answer``, ``answer_id``) or ten strings. Where these are not
    known, the only reference may be a dict of soft scores by answer, ``{"net": 1.0, "mesh": 0.3}``: then a prediction
    has the score of the answer it is equal to, letter by letter, or 0. ``meta`` may have ``answer_type``,
    ``question_type`` and ``is_topk_optimal`` (whether the best answer is in the vocabulary) for the partial scores.
    Numbers are not rounded; the server rounds to 0.01.

    Args:
        variant: ``"official"`` is today's evaluation server: prediction and answers are normalised, unless all ten
            answers agree, which are then compared as they are. ``"published"`` is the older script that most papers'
            code carries: the prediction is always normalised, the answers lose their punctuation only.

    >>> metric = VQAAccuracy()
    >>> answers = ["net"] * 7 + ["mesh"] + ["netting"] * 2
    >>> metric.update(["1", "2"], ["a net", "netting"], [answers, answers], [{"answer_type": "other"}, {}])
    >>> {name: round(value, 2) for name, value in metric.compute().items()}
    {'accuracy': 80.0, 'accuracy/other': 100.0}
    """

    headline = "accuracy"

    def __init__(self, variant: Variant = "official", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if variant not in get_args(Variant):
            raise ConfigError(f"VQA metric variant {variant!r} is unknown; choose {' or '.join(get_args(Variant))}.")
        self.variant = variant

    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """``accuracy``, ``accuracy/<answer type>``, ``accuracy/topk_[not_]optimal``, ``question_type/<type>``."""
        groups: dict[str, list[float]] = defaultdict(list)
        for record in records.values():
            accuracy = self.question_accuracy(record.prediction, record.references)
            groups["accuracy"].append(accuracy)
            for key, prefix in (("answer_type", "accuracy"), ("question_type", "question_type")):
                if key in record.meta:
                    groups[f"{prefix}/{record.meta[key]}"].append(accuracy)
            if "is_topk_optimal" in record.meta:
                groups[f"accuracy/topk_{'' if record.meta['is_topk_optimal'] else 'not_'}optimal"].append(accuracy)
        return {name: percent(groups[name]) for name in sorted(groups)}

    def question_accuracy(self, prediction: str, references: Sequence[str | Mapping[str, Any]]) -> float:
        """The accuracy in [0, 1] of one prediction."""
        if len(references) == 1 and _is_soft(references[0]):
            return float(references[0].get(prediction, 0.0))  # type: ignore[union-attr]
        people: list[dict[str, Any]] = [
            {"answer": given, "answer_id": i} if isinstance(given, str) else dict(given)
            for i, given in enumerate(references)
        ]
        prediction, answers = self._normalised(prediction, [person["answer"] for person in people])
        for person, answer in zip(people, answers, strict=True):
            person["answer"] = answer
        agreeing = [person for person in people if person["answer"] == prediction]
        # Officially "the others" are those whose dict differs: without answer_id, equal answers are one person.
        others = [sum(other != person for other in agreeing) for person in people]
        return sum(min(1.0, count / 3) for count in others) / len(people)

    def _normalised(self, prediction: str, answers: list[str]) -> tuple[str, list[str]]:
        """Prediction and answers as they are compared."""
        if self.variant == "published":
            unanimous = len(set(answers)) == 1
            return normalise_answer(prediction), answers if unanimous else [_remove_punctuation(a) for a in answers]
        answers = [_strip(answer) for answer in answers]
        if len(set(answers)) == 1:
            return _strip(prediction), answers
        return normalise_answer(prediction), [normalise_answer(answer) for answer in answers]


def _is_soft(reference: str | Mapping[str, Any]) -> bool:
    """Whether a reference is a dict of scores; an official answer is one of texts."""
    return not isinstance(reference, str) and all(isinstance(score, int | float) for score in reference.values())
