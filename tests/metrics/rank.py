"""One rank of a distributed evaluation: ``python rank.py RANK WORLD_SIZE STORE_FILE OUTPUT_FILE``.

A program of its own, because a spawned process cannot import a test module.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path

import torch.distributed as dist

from vl_peft.metrics import CaptionMetrics, ExactMatch, Record

WORDS = ["a", "man", "rides", "the", "brown", "horse", "over", "green", "hills"]
IDS = [f"item{i}" for i in range(11)]
CAPTIONS = {key: " ".join(WORDS[i % 4 : i % 4 + 3 + i % 3]) for i, key in enumerate(IDS)}
REFERENCES = {key: [" ".join(WORDS[i % 3 :]), " ".join(WORDS[: 4 + i % 5])] for i, key in enumerate(IDS)}
# Uneven, with examples that two ranks have, as a padding sampler gives them.
SHARDS = [IDS[:7] + IDS[:1], [*IDS[7:], IDS[0], IDS[3]]]


def captions(ids: list[str]) -> CaptionMetrics:
    """A metric that has seen the given examples in two batches."""
    metric = CaptionMetrics()
    for part in (ids[:2], ids[2:]):
        metric.update(part, [CAPTIONS[key] for key in part], [REFERENCES[key] for key in part])
    return metric


class Slow(ExactMatch):
    """Says who computed its extra score."""

    def extra(self, records: Mapping[str, Record]) -> dict[str, float]:
        self.notes = (f"by rank {dist.get_rank()} over {', '.join(records)}",)
        return {"by": float(dist.get_rank())}


def main(rank: int, world_size: int, store: str, output: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world_size)
    metric, lonely = captions(SHARDS[rank]), ExactMatch()
    if rank == 0:  # the other rank has nothing
        lonely.update(["x", "y"], ["a0", "a1"], [["a0"], ["a0"]])
    slow = Slow()
    slow.thorough = True
    slow.update([IDS[rank]], ["a0"], [[f"a{rank}"]])
    result = {"captions": metric.compute(), "ids": list(metric.records), "lonely": lonely.compute()}
    result |= {"thorough": slow.compute(), "notes": slow.notes}
    metric.update(["item1"], ["nothing of the kind"], [REFERENCES["item1"]])
    result["own"] = sorted(metric.records)
    result["changed"] = metric.compute()
    Path(output).write_text(json.dumps(result))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:])
