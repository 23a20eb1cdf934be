from __future__ import annotations

import doctest
import importlib
import importlib.util
import json
import os
import pickle
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from vl_peft.errors import UserError
from vl_peft.metrics import CaptionMetrics, ExactMatch, NLVR2Accuracy, Record, SentenceMetric, VQAAccuracy

RANK = Path(__file__).with_name("rank.py")


@pytest.fixture(scope="module")
def rank() -> ModuleType:
    spec = importlib.util.spec_from_file_location("metrics_rank", RANK)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes report that evaluate together."""
    folder = tmp_path_factory.mktemp("ranks")
    outputs = [folder / f"{i}.json" for i in range(2)]
    processes = [
        subprocess.Popen(
            [sys.executable, str(RANK), str(i), "2", str(folder / "store"), str(output)],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )
        for i, output in enumerate(outputs)
    ]
    assert [process.wait(timeout=120) for process in processes] == [0, 0]
    return [json.loads(output.read_text()) for output in outputs]


def test_two_processes_give_the_scores_of_one(rank: ModuleType, ranks: list[dict[str, Any]]) -> None:
    alone = rank.captions(rank.IDS).compute()
    for result in ranks:
        assert result["captions"] == alone
        assert result["ids"] == sorted(rank.IDS)


def test_a_rank_may_be_empty(ranks: list[dict[str, Any]]) -> None:
    assert [result["lonely"] for result in ranks] == [{"accuracy": 50.0}] * 2


def test_one_rank_computes_what_is_slow(ranks: list[dict[str, Any]]) -> None:
    for result in ranks:
        assert result["thorough"] == {"accuracy": 50.0, "by": 0.0}
        assert result["notes"] == ["by rank 0 over item0, item1"]


def test_ranks_go_on_with_their_own_examples(rank: ModuleType, ranks: list[dict[str, Any]]) -> None:
    assert [result["own"] for result in ranks] == [sorted({*shard, "item1"}) for shard in rank.SHARDS]
    metric = rank.captions(rank.IDS)
    metric.update(["item1"], ["nothing of the kind"], [rank.REFERENCES["item1"]])
    assert ranks[0]["changed"] == ranks[1]["changed"] == metric.compute()


@pytest.mark.parametrize("metric", [ExactMatch(), NLVR2Accuracy(), VQAAccuracy(), CaptionMetrics()])
def test_an_empty_metric_says_so(metric: SentenceMetric) -> None:
    with pytest.warns(UserWarning), pytest.raises(UserError, match="no prediction to score"):
        metric.compute()


def test_a_split_with_hidden_labels_has_predictions_but_no_scores() -> None:
    metric = ExactMatch()
    metric.update(["q2", "q1"], ["a0", "a1"], [[], []])
    assert metric.compute() == {}
    assert list(metric.records) == ["q1", "q2"]


def test_some_hidden_references_are_refused_by_name() -> None:
    metric = ExactMatch()
    metric.update(["q1", "q2"], ["a0", "a1"], [["a0"], []])
    assert set(metric.records) == {"q1", "q2"}
    with pytest.raises(UserError, match="'q2'"):
        metric.compute()


def test_columns_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError):
        ExactMatch().update(["q1", "q2"], ["a0"], [["a0"], ["a1"]])


def test_the_last_prediction_of_an_id_stands() -> None:
    metric = ExactMatch()
    metric.update(["b", "a", "b"], ["wrong", "right", "right"], [["right"]] * 3)
    assert metric.compute() == {"accuracy": 100.0}
    assert list(metric.records) == ["a", "b"]
    metric.update(["a"], ["wrong"], [["right"]])
    assert metric.records["a"].prediction == "wrong"
    assert metric.compute() == {"accuracy": 50.0}


def test_reset_forgets() -> None:
    metric = ExactMatch()
    metric.update(["a"], ["x"], [["x"]])
    metric.compute()
    metric.reset()
    assert not metric.records
    metric.update(["b"], ["y"], [["x"]])
    assert metric.compute() == {"accuracy": 0.0}


def test_forward_scores_the_batch_and_keeps_all() -> None:
    metric = ExactMatch()
    assert metric(["a"], ["x"], [["x"]]) == {"accuracy": 100.0}
    assert metric(["b"], ["y"], [["x"]]) == {"accuracy": 0.0}
    assert metric.compute() == {"accuracy": 50.0}
    assert set(metric.records) == {"a", "b"}


def test_copies_do_not_share_predictions() -> None:
    metric = ExactMatch()
    metric.update(["a"], ["x"], [["x"]])
    copy = pickle.loads(pickle.dumps(metric))
    metric.update(["b"], ["y"], [["x"]])
    assert copy.compute() == {"accuracy": 100.0}
    assert metric.clone().compute() == {"accuracy": 50.0}


def test_order_of_examples_does_not_matter() -> None:
    class Joined(SentenceMetric):
        headline = "first"

        def score(self, records: Mapping[str, Record]) -> dict[str, float]:
            return {"first": float(next(iter(records.values())).prediction)}

    ids = ["3", "1", "2"]
    for seed in range(3):
        random.Random(seed).shuffle(ids)
        metric = Joined()
        metric.update(ids, ids, [["-"]] * 3)
        assert metric.compute() == {"first": 1.0}


@pytest.mark.parametrize("name", ["accuracy", "caption", "gqa", "tokenizer", "vqa"])
def test_examples_in_docstrings(name: str) -> None:
    outcome = doctest.testmod(importlib.import_module(f"vl_peft.metrics.{name}"))
    assert outcome.attempted > 0
    assert outcome.failed == 0
