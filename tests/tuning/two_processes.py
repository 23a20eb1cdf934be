"""One of two processes: gradients under DDP against those of one process, for every strategy.

    RANK=0 python two_processes.py RENDEZVOUS MODELS     MODELS: a file with (kind, folder) pairs

Prints the number of models compared; stops at the first gradient that differs.
"""

from __future__ import annotations

import copy
import json
import os
import sys
from dataclasses import fields, replace
from pathlib import Path

import torch
from strategies import STRATEGIES, TASKS
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from vl_peft import backbones
from vl_peft.backbones import Backbone
from vl_peft.batch import Batch
from vl_peft.tuning.base import trainable


class Loss(nn.Module):
    """What DDP wraps."""

    def __init__(self, backbone: Backbone) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, batch: Batch) -> Tensor:
        out: Tensor = self.backbone(batch).sum()
        return out


def some_batch(task: str, seed: int) -> Batch:
    """Four rows, float64."""
    generator = torch.Generator().manual_seed(seed)
    words = torch.randint(4, 120, (4, 8), generator=generator)
    visual = torch.randn(4, 4, 8, generator=generator, dtype=torch.float64)
    ones, zeros = torch.ones(4, 4, dtype=torch.long), torch.zeros(4, 4, dtype=torch.long)
    boxes, weights = torch.zeros(4, 4, 4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    mask = torch.ones(4, 5, dtype=torch.long)
    mask[1, 3:] = 0
    ids = [str(i) for i in range(4)]
    return Batch(task, ids, words[:, :5], mask, visual, ones, zeros, zeros, boxes, words[:, 5:], weights)


def rows(batch: Batch, start: int, stop: int) -> Batch:
    """Some of the rows."""
    parts = {f.name: getattr(batch, f.name) for f in fields(batch)}
    return replace(batch, **{k: v[start:stop] for k, v in parts.items() if isinstance(v, Tensor | list)})


def compare(name: str, backbone: Backbone, rank: int) -> None:
    """Two steps of different tasks, their gradients added up."""
    alone = copy.deepcopy(backbone)
    model = DistributedDataParallel(Loss(backbone), find_unused_parameters=True)
    for seed, task in enumerate(TASKS[:2]):
        batch = some_batch(task, seed)
        model(rows(batch, 2 * rank, 2 * rank + 2)).backward()
        (alone(batch).sum() / 2).backward()
    wanted = {n: p.grad for n, p in trainable(alone).items()}
    for key, parameter in trainable(backbone).items():
        assert (parameter.grad is None) == (wanted[key] is None), f"{name}: {key}"
        if parameter.grad is not None:
            torch.testing.assert_close(parameter.grad, wanted[key], rtol=1e-10, atol=1e-12, msg=f"{name}: {key}")


def main() -> None:
    """All models."""
    torch.set_num_threads(1)
    rank = int(os.environ["RANK"])
    torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=2)
    count = 0
    for kind, folder in json.loads(Path(sys.argv[2]).read_text()):
        for name, strategy in STRATEGIES.items():
            torch.manual_seed(0)
            backbone: Backbone = getattr(backbones, kind)(folder, feature_dim=8, random_init=True)
            strategy().attach(backbone, TASKS)
            for parameter in backbone.parameters():
                parameter.data.add_(0.1 * torch.randn(parameter.shape))
            compare(f"{kind} {name}", backbone.double(), rank)
            count += 1
    print(f"{count} models")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
