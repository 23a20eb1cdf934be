"""The ``vl-peft`` command: training and evaluation by Lightning's command line, and tools around it."""

from __future__ import annotations

import argparse
import json
import logging
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from lightning import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI
from rich.console import Console
from rich.text import Text

from datamodules.loading import TaskData
from vl_peft.callbacks import Submissions
from vl_peft.errors import ConfigError
from vl_peft.failures import mistake, quiet_threads
from vl_peft.module import VLModule
from vl_peft.options import adapters_parser, data_parser
from vl_peft.preemption import Preempted, leaving_at_once
from vl_peft.runs import NEWEST, continue_newest, finish, newest_checkpoint

USAGE = """usage: vl-peft COMMAND [options]     (vl-peft COMMAND --help explains each)

  fit           train, validate after every epoch
  validate      score the validation splits       --ckpt_path CHECKPOINT
  test          score the test splits             --ckpt_path CHECKPOINT, --submit for the servers' files
  predict       write answers for the test splits --ckpt_path CHECKPOINT
  plan          print the tasks' shares, steps and passes over the data of a configuration
  params        count its parameters and what of them trains; needs no data and loads no weights
  adapters      export what a run trained, inspect it, add a task, merge it, import published checkpoints
  data demo     write the embedded demo corpus and its features
  data check    what there is of each benchmark, and whether training would fail: files, features, lengths
  data extract  features of your own images or videos
  data pack     all features of a folder in one file, read by row (also: verify, unpack)
  data score    official scores of a file of predictions, yours or anybody's

fit, validate, test, predict, plan and params take --config FILE, which may be repeated; see experiments/.
"""


# Without these an unknown option would print all two hundred known ones; --help still does.
USAGE_OF = "vl-peft {} --config FILE [options]"
USAGES = {c: {"usage": USAGE_OF.format(c)} for c in ("fit", "validate", "test", "predict")}


class VLCLI(LightningCLI):
    """Lightning's command line, with what model and data have to know of each other linked."""

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        """Tasks, feature size and raw go from the data to the model; tokenizer and seed to the data."""
        parser.link_arguments("data.tasks", "model.tasks", apply_on="instantiate")
        parser.link_arguments("data.feature_dim", "model.backbone.init_args.feature_dim", apply_on="instantiate")
        parser.link_arguments("model.backbone.init_args.pretrained", "data.init_args.tokenizer")
        parser.link_arguments("data.init_args.raw", "model.raw")
        parser.link_arguments("seed_everything", "data.init_args.seed")

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand == "test":
            what = "also write the files that the benchmarks' servers want, checked and zipped, into the run's folder"
            parser.add_argument("--submit", action="store_true", help=what)
        return parser

    def test(self, **arguments: Any) -> None:
        """Score the test splits; for a submission, predict the validation splits too where the server wants them."""
        if self.config.test.submit:
            self.trainer.callbacks.append(Submissions())  # type: ignore[attr-defined]
            if any(benchmark.submission("val") for benchmark in self.datamodule.benchmarks.values()):
                self.trainer.validate(**arguments)
        self.trainer.test(**arguments)

    def fit(self, **arguments: Any) -> None:
        """Train; ``--ckpt_path auto`` goes on with the newest run of that name, in its folder, if there is one."""
        if (word := arguments["ckpt_path"]) in NEWEST:
            arguments["ckpt_path"] = continue_newest(self.trainer, self.model, word)
        self.trainer.fit(**arguments)
        if arguments["ckpt_path"] and not self.model.metrics and self.trainer.enable_validation:  # nothing to train
            finish(self.trainer, self.model, self.datamodule)

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """The newest checkpoint by name, for evaluation too."""
        arguments = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand != "fit" and (word := arguments["ckpt_path"]) in NEWEST:
            arguments["ckpt_path"] = newest_checkpoint(self.trainer, word)
        return arguments

    def _parse_ckpt_path(self) -> None:
        """Checkpoints hold no settings."""

    def before_instantiate_classes(self) -> None:
        """See that there is a checkpoint before everything is built; one table of scores is enough: ours.

        Raises:
            ConfigError: if the file of ``--ckpt_path`` does not exist.
        """
        checkpoint = self.config.get(self.subcommand, {}).get("ckpt_path") if self.subcommand else None
        if checkpoint and checkpoint not in NEWEST and not Path(checkpoint).exists():
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


class ParamsCLI(VLCLI):
    """Parses a whole configuration and builds nothing."""

    def instantiate_classes(self) -> None:
        """Leave everything to :func:`params`."""


def _lightning(args: list[str], cli: type[VLCLI] = VLCLI, run: bool = True, name: str = "plan") -> VLCLI:
    return cli(
        VLModule,
        TaskData,
        trainer_class=Trainer,
        subclass_mode_data=True,
        auto_configure_optimizers=False,
        seed_everything_default=42,
        save_config_kwargs={"overwrite": True},  # a run that goes on is still in its folder
        parser_kwargs=USAGES if run else {"prog": f"vl-peft {name}", "usage": USAGE_OF.format(name)},
        args=args,
        run=run,
    )


def plan(args: list[str]) -> None:
    """Print the training plan of a configuration on 1, 2 and 8 processes."""
    from vl_peft.plan import plan_table

    cli = _lightning(args, PlanCLI, run=False)
    as_one = cli.datamodule.loading.batch == "global"
    worlds = (1,) if as_one else (1, 2, 8)
    Console().print(plan_table(cli.datamodule.schedule, cli.config.trainer.max_epochs, worlds))
    if as_one:
        Console().print("data.batch global: the same steps on any number of processes, which share each batch.")


def params(args: list[str]) -> None:
    """Count the parameters of a configuration on the meta device."""
    from vl_peft.parameters import count_parts, parts_table
    from vl_peft.tools import build_meta
    from vl_peft.vision import Vision

    parser = argparse.ArgumentParser(prog="vl-peft params", add_help=False)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--feature-dim", type=int, help="size of visual features (2048, or that of raw)")
    if {"-h", "--help"} & set(args):
        parser.print_help()
        print("\nand, as for fit:\n")
    options, rest = parser.parse_known_args(args)
    config = _lightning(rest, ParamsCLI, run=False, name="params").config
    vision = Vision(config.model.raw, config.model.train_vision) if config.model.raw else None
    backbone = build_meta(config, options.feature_dim or (vision.encoder.dim if vision else 2048))
    parts = count_parts(backbone, vision)
    if options.json:
        print(json.dumps({part.name: {"total": part.total, "trainable": part.trainable} for part in parts}, indent=2))
    else:
        tuning = config.model.tuning.class_path.rpartition(".")[2]
        Console().print(parts_table(parts, f"{type(backbone).__name__}, {tuning}, {len(backbone.route.tasks)} tasks"))


def data(args: list[str]) -> int | None:
    """``data demo | check | extract | pack | verify | unpack | score``."""
    parser = data_parser()
    options, rest = parser.parse_known_args(args, argparse.Namespace())
    options.rest = rest
    if rest and options.tool not in ("check", "score"):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if options.tool == "check":
        from vl_peft.check_table import fit_options, run_check

        cli = _lightning([*fit_options(options), *rest], PlanCLI, run=False, name="data check")
        return run_check(cli.datamodule, options)
    from vl_peft import tools as run

    run.DATA[options.tool](options)
    return None


def adapters(args: list[str]) -> None:
    """``adapters export | inspect | add | merge | import``."""
    options = adapters_parser().parse_args(args)
    from vl_peft import tools as run

    run.ADAPTERS[options.action](options)


TOOLS: dict[str, Callable[[list[str]], int | None]] = {
    "plan": plan,
    "params": params,
    "data": data,
    "adapters": adapters,
}


def _hush() -> None:
    """Keep off the screen what libraries say that is no help here: advertisements, advice that does not fit."""
    messages = (
        "does not have many workers",
        "isinstance.treespec, LeafSpec",
        "args parameter is intended to run",
        "You requested to overfit",
        "module.s. in eval mode at the start of training",  # a vision encoder always is
        "sync_dist=True",  # scores are of all processes already
    )
    for message in messages:
        warnings.filterwarnings("ignore", message=f".*{message}")
    noise = ("Tip:", "estimate number of stepping batches", "TPU available")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning_utilities.core.rank_zero"):
        logging.getLogger(name).addFilter(lambda record: not any(word in record.getMessage() for word in noise))


def _part() -> None:
    """Part from the other processes: threads of torch that last until Python ends have aborted it there."""
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status. A user's mistake ends with its message and status 2."""
    args = list(sys.argv[1:] if argv is None else argv)
    if not args or args[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    _hush()
    quiet_threads()
    torch.set_float32_matmul_precision("high")
    try:
        if args[0] in TOOLS:
            return TOOLS[args[0]](args[1:]) or 0
        with leaving_at_once() if args[0] == "fit" else nullcontext():
            _lightning(args)
        _part()
    except Preempted:
        _part()
        raise
    except Exception as error:
        failure = mistake(error)
        if failure is None:
            raise
        text = Text.assemble(("error: ", "bold red"), str(failure))
        Console(stderr=True).print(text, soft_wrap=True, highlight=False)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
