"""One process of a run that goes on with the newest checkpoint; each process sees a folder of its own.

LOCAL_RANK=0 WORLD_SIZE=2 ... python newest.py FOLDER
"""

from __future__ import annotations

import os
import sys

from lightning import Trainer
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import TensorBoardLogger

from vl_peft.runs import continue_newest

if __name__ == "__main__":
    logger = TensorBoardLogger(f"{sys.argv[1]}/{os.environ['LOCAL_RANK']}", "run")
    trainer = Trainer(accelerator="cpu", devices=2, strategy="ddp", logger=logger)
    found = continue_newest(trainer, BoringModel(), "auto")
    print(found, trainer.logger.version)  # type: ignore[union-attr]
