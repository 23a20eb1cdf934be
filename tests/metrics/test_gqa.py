from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl_peft.errors import DataError
from vl_peft.metrics import GQAAccuracy

Question = dict[str, Any]
# The right answers are a, b, a, yes; entailment among them, one id that is not asked.
QUESTIONS: dict[str, Question] = {
    "01": {"answer": "a", "structural": "query", "semantic": "attr", "group": "g", "entailed": ["01", "02", "04"]},
    "02": {"answer": "b", "structural": "query", "semantic": "rel", "group": "g", "entailed": ["01", "99"]},
    "03": {"answer": "a", "structural": "choose", "semantic": "rel", "group": "h", "entailed": ["03"]},
    "04": {"answer": "yes", "structural": "verify", "semantic": "attr", "group": None, "entailed": []},
}


def scored(questions: dict[str, Question], predictions: dict[str, str], **options: Any) -> GQAAccuracy:
    metric = GQAAccuracy(**options)
    metas = [
        {
            "types": {k: q.get(k, "query") for k in ("structural", "semantic", "detailed")},
            "entailed": tuple(q["entailed"]),
            "group": q["group"],
        }
        for q in questions.values()
    ]
    metric.update(
        list(questions), [predictions[k] for k in questions], [[q["answer"]] for q in questions.values()], metas
    )
    return metric


def test_by_hand() -> None:
    metric = scored(QUESTIONS, {"01": "a", "02": "a", "03": "c", "04": "yes"})
    assert metric.compute() == pytest.approx(
        {
            "accuracy": 50,
            "binary": 50,
            "open": 50,
            "semantic/attr": 100,
            "semantic/rel": 0,
            "structural/query": 50,
            "structural/choose": 0,
            "structural/verify": 100,
            "consistency": 50,  # 01 alone is right and entails others: 02 wrong, 04 right
            # g: (2-1)^2/1 + (0-1)^2/1 = 2 with 2 answers; h: (0-1)^2/1 = 1 with one; (2*2 + 1*1) / 3 / 100
            "distribution": 5 / 300,
        }
    )
    assert metric.notes == ("consistency: 1 of 4 entailed questions were not asked; it is over the others",)


def test_without_facts_there_is_the_accuracy_alone() -> None:
    metric = GQAAccuracy()
    metric.update(["1", "2"], ["cup", "jar"], [["cup"], ["cup"]])
    assert metric.compute() == {"accuracy": 50.0}
    assert metric.notes == ()


def test_unbalanced_questions_count_as_entailed_only() -> None:
    metric = GQAAccuracy()
    metric.update(
        ["1", "2"], ["a", "x"], [["a"], ["b"]], [{"entailed": ("2",)}, {"balanced": False, "entailed": ("1",)}]
    )
    assert metric.compute() == {"accuracy": 100.0, "consistency": 0.0}


def test_valid_and_plausible(tmp_path: Path) -> None:
    file = tmp_path / "val_choices.json"
    choices = {key: {"valid": ["a", "b"], "plausible": ["a"]} for key in QUESTIONS}
    file.write_text(json.dumps(choices))
    questions = QUESTIONS | {"04": QUESTIONS["04"] | {"detailed": "twoCommon"}}
    metric = scored(questions, {"01": "a", "02": "b", "03": "c", "04": "shape"}, choices=[file])
    assert "validity" not in metric.compute()
    metric.thorough = True
    metric.update([], [], [])
    assert metric.compute()["validity"] == 75
    assert metric.compute()["plausibility"] == 50
    del choices["03"]
    file.write_text(json.dumps(choices))
    metric.update([], [], [])
    assert "validity" not in metric.compute()
    assert metric.notes[-1].endswith("1 of 4 questions (first 03) are in no file of choices")
    file.write_text("{")
    metric.update([], [], [])
    with pytest.raises(DataError, match=r"val_choices\.json: cannot be read"):
        metric.compute()


def straightforward(questions: dict[str, Question], predictions: dict[str, str]) -> dict[str, float]:
    """The definitions word by word, each by itself."""
    keys = list(questions)
    right = {k: predictions[k] == questions[k]["answer"] for k in keys}

    def share(chosen: list[str]) -> float:
        return 100 * len([k for k in chosen if right[k]]) / len(chosen)

    scores = {"accuracy": share(keys)}
    if opened := [k for k in keys if questions[k]["structural"] == "query"]:
        scores["open"] = share(opened)
    if binary := [k for k in keys if questions[k]["structural"] != "query"]:
        scores["binary"] = share(binary)
    for by in ("structural", "semantic"):
        for kind in {q[by] for q in questions.values()}:
            scores[f"{by}/{kind}"] = share([k for k in keys if questions[k][by] == kind])
    means = []
    for k in keys:
        inferred = [e for e in questions[k]["entailed"] if e != k and e in questions]
        if right[k] and inferred:
            means.append(share(inferred))
    if means:
        scores["consistency"] = sum(means) / len(means)
    weighted = overall = 0.0
    for group in {q["group"] for q in questions.values()} - {None}:
        members = [k for k in keys if questions[k]["group"] == group]
        gold, said = [questions[k]["answer"] for k in members], [predictions[k] for k in members]
        chi = sum((said.count(a) - gold.count(a)) ** 2 / gold.count(a) for a in set(gold))
        weighted, overall = weighted + chi * len(members), overall + len(members)
    return scores | ({"distribution": weighted / overall / 100} if overall else {})


names, answers = [f"{i:02}" for i in range(8)], st.sampled_from("abcd")
questions = st.fixed_dictionaries(
    {
        "answer": answers,
        "structural": st.sampled_from(["query", "verify", "choose"]),
        "semantic": st.sampled_from(["attr", "rel"]),
        "group": st.sampled_from([None, "g", "h"]),
        "entailed": st.lists(st.sampled_from(names), max_size=3, unique=True),
    }
)


@given(st.dictionaries(st.sampled_from(names), st.tuples(questions, answers), min_size=1))
def test_straightforward_version_gives_the_same(rows: dict[str, tuple[Question, str]]) -> None:
    asked, said = {k: q for k, (q, _) in rows.items()}, {k: p for k, (_, p) in rows.items()}
    assert scored(asked, said).compute() == pytest.approx(straightforward(asked, said))
    perfect = scored(asked, {k: q["answer"] for k, q in asked.items()}).compute()
    assert {v for k, v in perfect.items() if k != "distribution"} == {100.0}
    assert perfect.get("distribution", 0) == 0
