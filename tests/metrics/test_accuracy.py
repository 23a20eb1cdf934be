from __future__ import annotations

import json
from hashlib import md5
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl_peft.errors import UserError
from vl_peft.metrics import ExactMatch, NLVR2Accuracy


def read_lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_how2qa_sample_submission(shared: Path) -> None:
    golden = json.loads((shared / "data/golden/value_qa_golden.json").read_text())["how2qa_val"]
    questions = read_lines(shared / "data/real/how2qa/how2qa_val_release.jsonl")
    predicted = json.loads((shared / "data/real/how2qa/how2qa_val_predictions.json").read_text())
    ids = [str(question["qid"]) for question in questions]
    metric = ExactMatch()
    metric.update(ids, [f"a{predicted[key]}" for key in ids], [[f"a{q['answer_idx']}"] for q in questions])
    accuracy = metric.compute()["accuracy"]
    assert round(accuracy, 2) == golden["official_rounded_percent"] == 73.13
    assert accuracy == pytest.approx(100 * golden["accuracy"], abs=1e-9)


def test_exact_match_is_exact() -> None:
    metric = ExactMatch()
    metric.update(list("abcd"), ["Pipe", "pipe ", "", "pipe"], [["pipe"]] * 4)
    assert metric.compute() == {"accuracy": 25.0}


def test_exact_match_per_group() -> None:
    metric = ExactMatch(per="show_name")
    metas = [{"show_name": "House M.D."}, {"show_name": "Friends"}, {"show_name": "Friends"}, {}]
    metric.update(list("abcd"), ["a0", "a1", "a2", "a3"], [["a0"], ["a1"], ["a0"], ["a0"]], metas)
    assert metric.compute() == {"accuracy": 50.0, "accuracy/Friends": 50.0, "accuracy/House M.D.": 100.0}


def nlvr2(rows: list[dict[str, str]], predictions: list[str]) -> dict[str, float]:
    metric = NLVR2Accuracy()
    metric.update([row["identifier"] for row in rows], predictions, [[row["label"]] for row in rows])
    return metric.compute()


def test_nlvr2_dev(shared: Path) -> None:
    golden = json.loads((shared / "data/golden/nlvr2_golden.json").read_text())["splits"]["dev"]
    rows = read_lines(shared / "data/real/nlvr2/dev.json")
    lines = (shared / "data/golden/nlvr2_pred/dev_pred.csv").read_text().split()
    predicted = dict(line.split(",") for line in lines)
    score = nlvr2(rows, [predicted[row["identifier"]] for row in rows])
    assert score["accuracy"] == pytest.approx(100 * golden["official_accuracy"], abs=1e-9)
    assert score["consistency"] == pytest.approx(100 * golden["official_consistency"], abs=1e-9)
    for name in ("balanced", "unbalanced"):
        assert score[f"accuracy/{name}"] == pytest.approx(golden[f"{name}_accuracy_percent"], abs=1e-9)
    flips = [int(md5(row["identifier"].encode()).hexdigest(), 16) % 10 < 7 for row in rows]
    by_rule = [str((row["label"] == "True") == kept) for row, kept in zip(rows, flips, strict=True)]
    assert nlvr2(rows, by_rule) == score
    score = nlvr2(rows, ["true"] * len(rows))
    assert score["accuracy"] == pytest.approx(100 * golden["all_true"]["accuracy"], abs=1e-9)
    assert score["consistency"] == pytest.approx(100 * golden["all_true"]["consistency"], abs=1e-9)


def test_nlvr2_identifier_must_have_four_parts() -> None:
    with pytest.raises(UserError, match="'dev-1-0'"):
        nlvr2([{"identifier": "dev-1-0", "label": "True"}], ["true"])


@given(st.dictionaries(st.tuples(*[st.integers(0, 3)] * 3), st.tuples(st.booleans(), st.booleans()), min_size=1))
def test_a_consistent_group_is_a_right_one(examples: dict[tuple[int, int, int], tuple[bool, bool]]) -> None:
    rows = [{"identifier": f"dev-{a}-{b}-{c}", "label": str(label)} for (a, b, c), (label, _) in examples.items()]
    score = nlvr2(rows, [str(verdict).lower() for _, verdict in examples.values()])
    groups: dict[tuple[int, int], bool] = {}
    for (a, _, c), (label, verdict) in examples.items():
        groups[a, c] = groups.get((a, c), True) and label == verdict
    assert score["consistency"] == pytest.approx(100 * sum(groups.values()) / len(groups))
    assert 0 <= score["accuracy"] <= 100
