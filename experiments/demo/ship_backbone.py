"""Saves what a part of the demo backbone's pretraining made, with the record of how it was made.

python experiments/demo/ship_backbone.py runs/demo-questions/version_0 runs/demo-backbone/questions
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
import yaml

from vl_peft.backbones import VLBart

KEPT = ("scores", "counts", "steps", "epochs", "train_seconds", "parameters", "versions", "git_commit")


def main() -> None:
    """Write the backbone and ``pretraining.json``; the part it began from is in there under ``after``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="folder of the pretraining run")
    parser.add_argument("out", type=Path)
    options = parser.parse_args()
    config = yaml.safe_load((options.run / "config.yaml").read_text())
    start = Path(config["model"]["backbone"]["init_args"]["pretrained"])
    checkpoint = torch.load(options.run / "checkpoints/last.ckpt", map_location="cpu", weights_only=True)
    state = {name.removeprefix("backbone."): t for name, t in checkpoint["state_dict"].items()}
    backbone = VLBart(str(start), state["visual_embedding.feature.0.weight"].shape[1], random_init=True)
    # Only the tied copies of the token table may be absent: a checkpoint holds each parameter once.
    missing, unexpected = backbone.load_state_dict(state, strict=False)
    tied = {"lm.model.encoder.embed_tokens.weight", "lm.model.decoder.embed_tokens.weight", "lm.lm_head.weight"}
    if unexpected or not set(missing) <= tied | {"lm.final_logits_bias"}:
        raise SystemExit(f"The checkpoint does not fit: missing {missing}, unexpected {unexpected}.")
    backbone.save_pretrained(options.out)
    results = json.loads((options.run / "results.json").read_text())
    record = {
        "command": "make pretrain-demo",
        "part": options.run.parent.name,
        "seed": config["seed_everything"],
        "validation": "3 % of the pretraining split, held out",
        **{key: results[key] for key in KEPT},
    }
    before = start / "pretraining.json"
    if before.is_file():
        record["after"] = json.loads(before.read_text())
    (options.out / "pretraining.json").write_text(json.dumps(record, indent=2) + "\n")
    print(f"wrote {options.out}")


if __name__ == "__main__":
    main()
