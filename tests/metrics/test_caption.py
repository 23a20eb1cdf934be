from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl_peft.errors import UserError
from vl_peft.metrics import CaptionMetrics
from vl_peft.metrics.caption import _common_subsequence, bleu, cider_d, rouge_l
from vl_peft.metrics.java import JavaError, meteor
from vl_peft.metrics.ngrams import Captions

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
    """What validating on one caption at a time makes of the same predictions: TVC's ``flatten_val``."""
    items = golden["vatex_val_human_vs5_first200"]["items"]
    pairs = [(item["prediction"], text) for item in items for text in item["references"]]
    scores = score((f"{i:04}", prediction, [text]) for i, (prediction, text) in enumerate(pairs))
    assert_golden(scores, golden["vatex_val_human_vs5_first200_flattened"])


def read_descriptions(path: Path) -> dict[str, list[str]]:
    rows = map(json.loads, path.read_text().splitlines())
    return {str(row["clip_id"]): [description["desc"] for description in row["descs"]] for row in rows}


def test_golden_yc2c(shared: Path, golden: dict[str, Any]) -> None:
    folder = shared / "data/real/yc2c"
    rows = list(map(json.loads, (folder / "yc2c_val_release.jsonl").read_text().splitlines()))
    predictions = read_descriptions(folder / "yc2c_val_predictions.jsonl")
    ids, metas = [str(row["clip_id"]) for row in rows], [{"vid_name": row["vid_name"]} for row in rows]
    metric = CaptionMetrics(ascii_only=True, videos=True)
    metric.update(ids, [predictions[key][0] for key in ids], [[row["descs"][0]["desc"]] for row in rows], metas)
    scores = metric.compute()
    assert_golden({name: scores[name] for name in NAMES}, golden["yc2c_val_full"])
    for view in ("macro", "paragraph"):
        expected = golden["yc2c_val_full"][f"{view}_view_starter_code"]["scores"]
        for name in NAMES:
            assert scores[f"{view}/{name}"] == pytest.approx(100 * expected[name], abs=5.1e-5), (view, name)


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
    assert bleu(Captions(predictions, references))[:3] == pytest.approx(expected, abs=1e-6)


def test_rouge_by_hand() -> None:
    # longest common subsequence "a dog on" of 4 and 5 words
    precision, recall = 3 / 4, 3 / 5
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(["a dog sits on"], [["a brown dog on grass"]]) == pytest.approx(expected)
    assert rouge_l([""], [[""]]) == 1.0


def test_cider_by_hand() -> None:
    # Two items, single words: only the 1-grams count (1/4), times 10; lengths do not differ in bigrams.
    assert cider_d(Captions(["dog", "cat"], [["dog"], ["horse"]])) == pytest.approx(10 / 4 / 2)
    assert cider_d(Captions(["dog"], [["dog"]])) == 0.0  # every word is in every item


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


def test_segments_are_joined_in_the_order_of_their_numbers() -> None:
    texts = {"v_10": "cut the onion", "v_9": "peel it", "w_x_0": "boil some water"}
    metric = CaptionMetrics(videos=True)
    metas = [{"vid_name": name} for name in texts]
    metric.update(list(texts), list(texts.values()), [[text] for text in texts.values()], metas)
    joined = score(
        [("v", "peel it cut the onion", ["peel it cut the onion"]), ("w", "boil some water", ["boil some water"])]
    )
    assert {name: metric.compute()[f"paragraph/{name}"] for name in NAMES} == pytest.approx(joined)
    metric.update(["u"], ["stir"], [["stir"]], [{"vid_name": "u_one"}])
    with pytest.raises(UserError, match="'u' has no vid_name"):
        metric.compute()


java = pytest.mark.skipif(shutil.which("java") is None, reason="METEOR is a Java program")


@java
@pytest.mark.slow
def test_golden_meteor(golden: dict[str, Any]) -> None:
    pytest.importorskip("pycocoevalcap", reason="the Java program comes with it")
    items = golden["edge_constructed"]["items"]
    value = meteor([i["prediction_tokenized"] for i in items], [i["references_tokenized"] for i in items])
    assert value == pytest.approx(float(golden["edge_constructed"]["scores_repr"]["METEOR"]), abs=1e-8)


@java
def test_a_program_that_takes_too_long_is_stopped() -> None:
    pytest.importorskip("pycocoevalcap", reason="the Java program comes with it")
    with pytest.raises(JavaError, match=r"METEOR was left out: .* took more than 0.1 s"):
        meteor(["a dog"], [["a dog"]], limit=0.1)


def test_what_cannot_be_run_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    metric = CaptionMetrics(spice=True)
    metric.update(["1", "2"], ["a dog", "a cat"], [["a dog"], ["a cat"]])
    assert list(metric.compute()) == NAMES
    assert metric.notes == ()
    metric.thorough = True
    metric.update(["1"], ["a cat"], [["a dog"]])
    assert list(metric.compute()) == NAMES
    assert [note.split(":")[0] for note in metric.notes] == ["METEOR was left out", "SPICE was left out"]
