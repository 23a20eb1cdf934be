from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl_peft.metrics import CaptionMetrics
from vl_peft.metrics.caption import _common_subsequence, bleu, cider_d, rouge_l

Item = tuple[str, str, list[str]]
NAMES = ["CIDEr", "Bleu_1", "Bleu_2", "Bleu_3", "Bleu_4", "ROUGE_L"]


@pytest.fixture(scope="module")
def golden(shared: Path) -> dict[str, Any]:
    return dict(json.loads((shared / "data/golden/metric_golden.json").read_text())["sets"])


def score(items: Iterable[Item], ascii_only: bool = False) -> dict[str, float]:
    metric = CaptionMetrics(ascii_only=ascii_only)
    ids, predictions, references = zip(*items, strict=True)
    metric.update(ids, predictions, references)
    return metric.compute()


def assert_golden(scores: dict[str, float], expected: dict[str, Any]) -> None:
    assert list(scores) == NAMES
    for name in NAMES:
        assert scores[name] == pytest.approx(100 * float(expected["scores_repr"][name]), abs=1e-6), name


@pytest.mark.parametrize(
    "name", ["yc2c_val_first200", "vatex_val_human_vs5_first200", "vatex_val_rotated_first200", "edge_constructed"]
)
def test_golden_items(golden: dict[str, Any], name: str) -> None:
    items = golden[name]["items"]
    scores = score((str(item["id"]), item["prediction"], item["references"]) for item in items)
    assert_golden(scores, golden[name])


def test_golden_flattened(golden: dict[str, Any]) -> None:
    items = golden["vatex_val_human_vs5_first200"]["items"]
    pairs = [(item["prediction_tokenized"], [text]) for item in items for text in item["references_tokenized"]]
    predictions, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    expected = golden["vatex_val_human_vs5_first200_flattened"]["scores_repr"]
    assert cider_d(predictions, references) == pytest.approx(float(expected["CIDEr"]), abs=1e-8)
    assert bleu(predictions, references)[3] == pytest.approx(float(expected["Bleu_4"]), abs=1e-8)
    assert rouge_l(predictions, references) == pytest.approx(float(expected["ROUGE_L"]), abs=1e-8)


def read_descriptions(path: Path) -> dict[str, list[str]]:
    rows = map(json.loads, path.read_text().splitlines())
    return {str(row["clip_id"]): [description["desc"] for description in row["descs"]] for row in rows}


def test_golden_yc2c(shared: Path, golden: dict[str, Any]) -> None:
    folder = shared / "data/real/yc2c"
    references = read_descriptions(folder / "yc2c_val_release.jsonl")
    predictions = read_descriptions(folder / "yc2c_val_predictions.jsonl")
    items = [(key, predictions[key][0], texts) for key, texts in references.items()]
    assert_golden(score(items, ascii_only=True), golden["yc2c_val_full"])


def test_golden_vatex(shared: Path, golden: dict[str, Any]) -> None:
    captions = read_descriptions(shared / "data/real/vatex/vatex_en_c_val_release.jsonl")
    items = [(key, texts[0], texts[1:6]) for key, texts in captions.items()]
    assert_golden(score(items, ascii_only=True), golden["vatex_val_human_vs5_full"])


def test_perfect_captions() -> None:
    texts = ["a man rides a horse", "two dogs run on the beach", "she cuts an onion in half"]
    scores = score((str(i), text.title() + ".", [text, "zzz"]) for i, text in enumerate(texts))
    assert scores["ROUGE_L"] == pytest.approx(100)
    assert scores["Bleu_4"] == pytest.approx(100, abs=1e-5)
    # Cosine 1 with the one, 0 with the other of two references, times 10.
    assert scores["CIDEr"] == pytest.approx(500)


def test_nothing_in_common() -> None:
    scores = score([("1", "one two three", ["four five six"]), ("2", "", ["seven"])])
    assert all(value == pytest.approx(0, abs=1e-4) for value in scores.values())


def test_bleu_by_hand() -> None:
    # 5 of 6 words, 3 of 5 pairs, 1 of 4 triples found; one word shorter than the closest reference of 7
    predictions, references = ["the cat sat on a mat"], [["the cat lay on a mat now", "x"]]
    expected = [
        math.exp(1 - 7 / 6) * product for product in (5 / 6, (5 / 6 * 3 / 5) ** 0.5, (5 / 6 * 3 / 5 / 4) ** (1 / 3))
    ]
    assert bleu(predictions, references)[:3] == pytest.approx(expected, abs=1e-6)


def test_rouge_by_hand() -> None:
    # longest common subsequence "a dog on" of 4 and 5 words
    precision, recall = 3 / 4, 3 / 5
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(["a dog sits on"], [["a brown dog on grass"]]) == pytest.approx(expected)
    assert rouge_l([""], [[""]]) == 1.0


def test_cider_by_hand() -> None:
    # Two items, single words: only the 1-grams count (1/4), times 10; lengths do not differ in bigrams.
    assert cider_d(["dog", "cat"], [["dog"], ["horse"]]) == pytest.approx(10 / 4 / 2)
    assert cider_d(["dog"], [["dog"]]) == 0.0  # every word is in every item


def test_ascii_only_splits_words() -> None:
    items = [("1", "a café", ["a caf"]), ("2", "two dogs", ["two dogs"])]
    assert score(items, ascii_only=True)["ROUGE_L"] == pytest.approx(100)
    assert score(items)["ROUGE_L"] < 100


def slow_common_subsequence(first: list[str], second: list[str]) -> int:
    if not first or not second:
        return 0
    if first[-1] == second[-1]:
        return 1 + slow_common_subsequence(first[:-1], second[:-1])
    return max(slow_common_subsequence(first[:-1], second), slow_common_subsequence(first, second[:-1]))


sentences = st.lists(st.sampled_from("abcd"), max_size=7)


@given(sentences, sentences)
def test_common_subsequence(first: list[str], second: list[str]) -> None:
    assert _common_subsequence(first, second) == slow_common_subsequence(first, second)


@given(st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=3)), min_size=1, max_size=5))
def test_scores_are_in_range(rows: list[tuple[list[str], list[list[str]]]]) -> None:
    scores = score((str(i), " ".join(a), [" ".join(b) for b in bs]) for i, (a, bs) in enumerate(rows))
    for name in NAMES[1:]:
        assert 0 <= scores[name] <= 100 + 1e-6
    assert 0 <= scores["CIDEr"] <= 1000 + 1e-6
