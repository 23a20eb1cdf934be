from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl_peft.errors import ConfigError
from vl_peft.metrics import VQAAccuracy, normalise_answer, soft_scores
from vl_peft.metrics.vqa import Variant

GOLDEN_KEY = {"official": "official_accuracy_percent", "published": "reference_evaluate_raw_percent"}


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    return dict(json.loads((shared / "data/golden/vqa_golden.json").read_text()))


def people(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The answers in the form of the official annotation file."""
    return [
        {"answer": answer, "answer_confidence": "yes"} | ({"answer_id": i} if item["has_answer_id"] else {})
        for i, answer in enumerate(item["answers"], start=1)
    ]


@pytest.mark.parametrize("variant", get_args(Variant))
def test_every_golden_question(golden: dict[str, Any], variant: Variant) -> None:
    metric = VQAAccuracy(variant)
    for item in golden["items"]:
        accuracy = 100 * metric.question_accuracy(item["prediction"], people(item))
        assert accuracy == pytest.approx(item[GOLDEN_KEY[variant]], abs=1e-9), item


@pytest.mark.parametrize("variant", get_args(Variant))
def test_partial_scores(golden: dict[str, Any], variant: Variant) -> None:
    items = golden["items"]
    metric = VQAAccuracy(variant)
    metas = [{key: item[key] for key in ("answer_type", "question_type")} for item in items]
    ids = [str(item["question_id"]) for item in items]
    metric.update(ids, [item["prediction"] for item in items], [people(item) for item in items], metas)
    score = metric.compute()
    values = [item[GOLDEN_KEY[variant]] for item in items]
    assert score["accuracy"] == pytest.approx(sum(values) / len(values))
    for answer_type in ("yes/no", "number", "other"):
        values = [item[GOLDEN_KEY[variant]] for item in items if item["answer_type"] == answer_type]
        assert score[f"accuracy/{answer_type}"] == pytest.approx(sum(values) / len(values))
    kinds = {f"question_type/{item['question_type']}" for item in items}
    assert {name for name in score if name.startswith("question_type/")} == kinds


def test_every_golden_normal_form(golden: dict[str, Any]) -> None:
    for item in golden["items"]:
        assert normalise_answer(item["prediction"]) == item["prediction_normalised"]


def test_official_vocabulary_is_in_normal_form(shared: Path) -> None:
    vocabulary = json.loads((shared / "data/real/vqav2/trainval_label2ans.json").read_text())
    assert [answer for answer in vocabulary if normalise_answer(answer) != answer] == []


def test_soft_scores_are_the_ladder(golden: dict[str, Any]) -> None:
    ladder = {int(votes): score for votes, score in golden["soft_score_ladder"].items() if int(votes)}
    for votes, score in ladder.items():
        assert soft_scores(["net"] * votes + ["other"] * (10 - votes))["net"] == score
    assert soft_scores(["Yes", "yes"]) == {"Yes": 0.3, "yes": 0.3}
    assert soft_scores([]) == {}


def test_unknown_variant() -> None:
    with pytest.raises(ConfigError, match="official or published"):
        VQAAccuracy("vqa2")  # type: ignore[arg-type]


def test_variants_differ_as_documented() -> None:
    unanimous, split = ["yes"] * 10, ["two"] * 5 + ["2"] * 5
    assert VQAAccuracy("official").question_accuracy("Yes", unanimous) == 0
    assert VQAAccuracy("published").question_accuracy("Yes", unanimous) == 1
    assert VQAAccuracy("official").question_accuracy("two", split) == 1
    assert VQAAccuracy("published").question_accuracy("two", split) == 1  # "2" by five people
    assert VQAAccuracy("published").question_accuracy("two", ["two"] * 9 + ["2"]) == pytest.approx(0.3)


@given(st.lists(st.sampled_from(["cat", "dog", "red hat"]), min_size=10, max_size=10), st.sampled_from(["cat", "bird"]))
def test_soft_score_is_the_official_accuracy(answers: list[str], prediction: str) -> None:
    for variant in get_args(Variant):
        accuracy = VQAAccuracy(variant).question_accuracy(prediction, answers)
        assert accuracy == pytest.approx(soft_scores(answers).get(prediction, 0.0))


@given(st.text(max_size=30))
def test_normal_form_has_no_articles_and_single_spaces(answer: str) -> None:
    words = normalise_answer(answer).split()
    assert normalise_answer(answer) == " ".join(words)
    assert not {"a", "an", "the"} & set(words)


def test_soft_scores_as_references() -> None:
    metric = VQAAccuracy()
    labels = {"net": 1.0, "mesh": 0.3}
    metric.update(list("abcd"), ["net", "mesh", "Net", "net"], [[labels], [labels], [labels], [{}]])
    assert metric.compute() == {"accuracy": pytest.approx(100 * (1 + 0.3) / 4)}


def test_answers_in_and_outside_of_the_vocabulary() -> None:
    metric = VQAAccuracy()
    metas = [{"is_topk_optimal": True}, {"is_topk_optimal": True}, {"is_topk_optimal": False}, {}]
    metric.update(list("abcd"), ["net", "cat", "cat", "net"], [["net"] * 10] * 4, metas)
    assert metric.compute() == {"accuracy": 50, "accuracy/topk_optimal": 50, "accuracy/topk_not_optimal": 0}
