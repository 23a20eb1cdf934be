"""What the commands ``data`` and ``adapters`` take; what they do is in ``tools.py`` and ``check_table.py``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

ENCODER_HELP = """demo (the default); a model of open_clip such as RN50, RN101, RN50x4 or ViT-B/32; or, with a slash,
a hub name or folder of a CLIP or SigLIP for transformers: openai/clip-vit-base-patch32, ./my_clip"""


def data_parser() -> argparse.ArgumentParser:
    """Of ``vl-peft data``; ``tool`` says which was chosen."""
    parser = argparse.ArgumentParser(prog="vl-peft data")
    tools = parser.add_subparsers(dest="tool", required=True)
    for add in (_demo, _check, _extract, _pack, _score):
        add(tools)
    return parser


def _demo(tools: Any) -> None:
    demo = tools.add_parser("demo", help="write the embedded demo corpus and extract its features")
    demo.add_argument("--root", type=Path, default=Path("data/demo"), help="folder to write to (data/demo)")
    demo.add_argument("--parts", nargs="+", choices=["image", "video", "pretrain"], default=["image", "video"])
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--scale", type=float, default=1.0, help="multiplies the number of examples (1.0)")
    demo.add_argument("--no-features", action="store_true", help="write annotations and media files only")
    demo.add_argument("--workers", type=int, default=2, help="processes (2)")


def _check(tools: Any) -> None:
    epilog = (
        "Any option of fit may follow, such as --data.benchmarks.vqa.init_args.split_by official. "
        "The exit status is 1 if training would fail."
    )
    what = "see whether the benchmarks' data is complete and fit to train on"
    check = tools.add_parser("check", help=what, epilog=epilog)
    check.add_argument("--config", action="append", default=[], help="check what this configuration reads; repeatable")
    check.add_argument("--root", help="folder with the benchmarks' folders (data/demo)")
    check.add_argument("--benchmarks", nargs="+", metavar="NAME", help="which: vqa, gqa ... (all that are there)")
    check.add_argument("--encoder", help="whose features, where there are several")
    check.add_argument("--tokenizer", help="counts the tokens: a folder, a hub name or demo (demo)")
    check.add_argument("--full", action="store_true", help="read all features and texts, not only some")
    check.add_argument(
        "--sample", type=int, default=200, help="features of each split to read; ten times the texts (200)"
    )
    check.add_argument("--missing", type=Path, help="folder for lists of the keys without features")
    check.add_argument("--json", action="store_true", help="print JSON instead of tables")
    check.add_argument("--workers", type=int, default=2, help="processes (2)")


def _extract(tools: Any) -> None:
    extract = tools.add_parser("extract", help="features of a folder of images or videos")
    extract.add_argument("source", type=Path, help="folder with image or video files, searched recursively")
    extract.add_argument("out", type=Path, help="folder for the feature files")
    extract.add_argument("--kind", choices=["images", "videos"], required=True)
    extract.add_argument("--encoder", default="demo", help=ENCODER_HELP)
    extract.add_argument("--weights", help="of an open_clip model: a tag or a checkpoint file (openai)")
    extract.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    extract.add_argument(
        "--batch-size", type=int, default=64, help="images or frames through the encoder at a time (64)"
    )
    precisions = ["float32", "float16", "bfloat16"]
    extract.add_argument("--precision", choices=precisions, help="to calculate in (float16 on CUDA, float32 elsewhere)")
    extract.add_argument("--accept-truncated", action="store_true", help="images that end early: take what is there")
    extract.add_argument("--workers", type=int, default=2, help="processes (2)")


def _pack(tools: Any) -> None:
    pack = tools.add_parser("pack", help="all features of a folder in one file that is read by row")
    pack.add_argument("source", metavar="folder", type=Path, help="feature folder, such as .../data_clip_RN101_att")
    pack.add_argument("out", type=Path, nargs="?", help="packed file (FOLDER.packed.h5, where training finds it)")
    pack.add_argument("--pool", type=int, default=None, help="rows to shorten each to, as training does: 36 or 64")
    pack.add_argument("--dtype", choices=["keep", "float16", "bfloat16"], default="keep", help="of the rows (keep)")
    verify = tools.add_parser("verify", help="compare a packed file with its checksum")
    verify.add_argument("source", metavar="file", type=Path)
    unpack = tools.add_parser("unpack", help="a packed file as one file per image or video again, bit-equal")
    unpack.add_argument("source", metavar="file", type=Path)
    unpack.add_argument("out", type=Path)
    unpack.add_argument("--kind", choices=["images", "videos"], required=True)


def _score(tools: Any) -> None:
    usage = "vl-peft data score PREDICTIONS --benchmark tvc (--references FILE | --root DIR --split val) [options]"
    more = "Any option of the benchmark may follow, such as --accuracy published or --split_by official for vqa."
    score = tools.add_parser("score", help="official scores of a file of predictions", usage=usage, epilog=more)
    score.add_argument("predictions", type=Path, help="in the benchmark's submission format, or of a run")
    score.add_argument("--benchmark", required=True, help="vqa, gqa, nlvr, caption, tvqa, how2qa, tvc or yc2c")
    score.add_argument("--references", type=Path, help="an annotation file; without, the split below --root")
    score.add_argument("--split", choices=["train", "val", "test"], default="val")
    score.add_argument("--partial", action="store_true", help="score only the ids that both files have")
    score.add_argument("--json", action="store_true", help="print JSON instead of a table")


def adapters_parser() -> argparse.ArgumentParser:
    """Of ``vl-peft adapters``; ``action`` says which was chosen."""
    parser = argparse.ArgumentParser(prog="vl-peft adapters")
    actions = parser.add_subparsers(dest="action", required=True)
    export = actions.add_parser("export", help="write what a run trained to a folder of a few MB")
    export.add_argument("source", metavar="run", type=Path, help="folder of a finished run")
    export.add_argument("--ckpt", type=Path, default=None, help="another checkpoint than the last one")
    inspect = actions.add_parser("inspect", help="print what a folder holds")
    inspect.add_argument("source", metavar="folder", type=Path)
    add = actions.add_parser("add", help="add a task whose parts begin as another task's")
    add.add_argument("source", metavar="folder", type=Path)
    add.add_argument("--task", required=True)
    add.add_argument("--like", required=True, help="task to begin as")
    merge = actions.add_parser("merge", help="write a backbone with the (shared LoRA) weights added to its own")
    merge.add_argument("source", metavar="folder", type=Path)
    published = actions.add_parser("import", help="read a checkpoint of the published code")
    published.add_argument("source", metavar="checkpoint", type=Path)
    published.add_argument("--backbone", required=True, help="folder or hub name of the plain backbone")
    for action in (export, add, merge, published):
        action.add_argument("out", type=Path, help="folder to write")
    return parser
