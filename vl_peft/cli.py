"""The ``vl-peft`` command: training and evaluation by Lightning's command line, and tools around it."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from rich.text import Text

from datamodules.loading import TaskData
from vl_peft.errors import ConfigError, UserError
from vl_peft.module import VLModule

USAGE = """usage: vl-peft COMMAND [options]     (vl-peft COMMAND --help explains each)

  fit           train, validate after every epoch
  validate      score the validation splits       --ckpt_path CHECKPOINT
  test          score the test splits             --ckpt_path CHECKPOINT
  predict       write answers for the test splits --ckpt_path CHECKPOINT
  plan          print the tasks' shares, steps and passes over the data of a configuration
  data demo     write the embedded demo corpus and its features
  data extract  features of your own images or videos

fit, validate, test, predict and plan take --config FILE, which may be repeated; see experiments/.
"""

# Without these an unknown option would print all two hundred known ones; --help still does.
USAGES = {c: {"usage": f"vl-peft {c} --config FILE [options]"} for c in ("fit", "validate", "test", "predict")}


class VLCLI(LightningCLI):
    """Lightning's command line, with what model and data have to know of each other linked."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Tasks and feature size go from the data to the model; tokenizer and seed to the data."""
        parser.link_arguments("data.tasks", "model.tasks", apply_on="instantiate")
        parser.link_arguments("data.feature_dim", "model.backbone.init_args.feature_dim", apply_on="instantiate")
        parser.link_arguments("model.backbone.init_args.pretrained", "data.init_args.tokenizer")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def before_instantiate_classes(self) -> None:
        """See that there is a checkpoint before everything is built; one table of scores is enough: ours.

        Raises:
            ConfigError: if the file of ``--ckpt_path`` does not exist.
        """
        checkpoint = self.config.get(self.subcommand, {}).get("ckpt_path") if self.subcommand else None
        if checkpoint and checkpoint not in ("last", "best", "hpc") and not Path(checkpoint).exists():
            raise ConfigError(f"--ckpt_path {checkpoint}: there is no such checkpoint.")
        if self.subcommand in ("validate", "test"):
            self.config[self.subcommand].verbose = False


class PlanCLI(VLCLI):
    """Parses a whole configuration but builds only its data."""

    def instantiate_classes(self) -> None:
        """Make ``self.datamodule``."""
        parser = ArgumentParser()
        parser.add_subclass_arguments(TaskData, "data")
        self.datamodule = parser.instantiate_classes(Namespace(data=self.config.data)).data


def _lightning(args: list[str], cli: type[VLCLI] = VLCLI, run: bool = True) -> VLCLI:
    return cli(
        VLModule,
        TaskData,
        trainer_class=Trainer,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=42,
        parser_kwargs=USAGES if run else {"prog": "vl-peft plan", "usage": "vl-peft plan --config FILE [options]"},
        args=args,
        run=run,
    )


def plan(args: list[str]) -> None:
    """Print the training plan of a configuration on 1, 2 and 8 processes."""
    from vl_peft.plan import plan_table

    cli = _lightning(args, PlanCLI, run=False)
    Console().print(plan_table(cli.datamodule.schedule, cli.config.trainer.max_epochs, (1, 2, 8)))


def data(args: list[str]) -> None:
    """``data demo`` and ``data extract``."""
    parser = argparse.ArgumentParser(prog="vl-peft data")
    tools = parser.add_subparsers(dest="tool", required=True)
    demo = tools.add_parser("demo", help="write the embedded demo corpus and extract its features")
    demo.add_argument("--root", type=Path, default=Path("data/demo"), help="folder to write to (data/demo)")
    demo.add_argument("--parts", nargs="+", choices=["image", "video", "pretrain"], default=["image", "video"])
    demo.add_argument("--seed", type=int, default=0)
    demo.add_argument("--scale", type=float, default=1.0, help="multiplies the number of examples (1.0)")
    demo.add_argument("--no-features", action="store_true", help="write annotations and media files only")
    extract = tools.add_parser("extract", help="features of a folder of images or videos")
    extract.add_argument("source", type=Path, help="folder with image or video files, searched recursively")
    extract.add_argument("out", type=Path, help="folder for the feature files")
    extract.add_argument("--kind", choices=["images", "videos"], required=True)
    extract.add_argument("--encoder", default="demo")
    for tool in (demo, extract):
        tool.add_argument("--workers", type=int, default=2, help="processes (2)")
    options = parser.parse_args(args)
    from vl_peft import tools as run

    run.write_demo(options) if options.tool == "demo" else run.extract(options)


TOOLS: dict[str, Callable[[list[str]], None]] = {"plan": plan, "data": data}


def _hush() -> None:
    """Keep off the screen what libraries say that is no help here: advertisements, advice that does not fit."""
    for message in ("does not have many workers", "isinstance.treespec, LeafSpec", "args parameter is intended to run"):
        warnings.filterwarnings("ignore", message=f".*{message}")
    noise = ("Tip:", "estimate number of stepping batches", "TPU available")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning_utilities.core.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not any(word in record.getMessage() for word in noise))


def _mistake(error: BaseException | None) -> UserError | None:
    """The user's mistake behind an error, if there is one: libraries wrap what is raised below them."""
    while error is not None and not isinstance(error, UserError):
        error = error.__cause__
    return error


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A user's mistake ends with its message and status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    _hush()
    torch.set_float32_matmul_precision("high")
    try:
        if args[0] in TOOLS:
            TOOLS[args[0]](args[1:])
        else:
            _lightning(args)
    except Exception as error:
        mistake = _mistake(error)
        if mistake is None:
            raise
        text = Text.assemble(("error: ", "bold red"), str(mistake))
        Console(stderr=True).print(text, soft_wrap=True, highlight=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
