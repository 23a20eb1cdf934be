"""The newest checkpoint of a run, and leaving in time when the machine is wanted back."""

from __future__ import annotations

import signal
from pathlib import Path
from types import FrameType
from typing import Any

from lightning import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning_utilities.core.rank_zero import rank_zero_info

from vl_peft.errors import DataError, UserError
from vl_peft.preemption import SIGNALS, Preempted, requeue
from vl_peft.runs import check_writable


class LastCheckpoint(Checkpoint):
    """Keeps ``checkpoints/last.ckpt`` in the run's folder: after each epoch, every so many steps, when asked to stop.

    A signal only sets a flag. At the end of a step, or of the validation that follows it, the processes agree on it,
    write the checkpoint and leave with exit status 75; a running SLURM job asks to be queued again first.
    ``--ckpt_path auto`` goes on, in the same folder. Between a step and its validation there is no checkpoint: a run
    that went on from it would not validate.

    Args:
        every_n_steps: how often within an epoch.
        signals: which signals ask to stop.
        agree_every_n_steps: several processes ask each other only so often: it makes them wait for each other.
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        signals: tuple[str, ...] = SIGNALS,
        agree_every_n_steps: int = 10,
    ) -> None:
        unknown = [name for name in signals if not hasattr(signal, name)]
        if unknown or every_n_steps < 1 or agree_every_n_steps < 1:
            raise UserError(f"LastCheckpoint: steps must be 1 or more, and signals known ones, not {unknown}.")
        self.every_n_steps, self.agree_every_n_steps = every_n_steps, agree_every_n_steps
        self.signals = [signal.Signals[name] for name in signals]
        self._asked = ""
        self._due = self._stop = self._last = False
        self._handlers: dict[signal.Signals, Any] = {}

    def file(self, trainer: Trainer) -> Path:
        """Where the checkpoint is; asks the other processes."""
        return Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints" / "last.ckpt"

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Listen, and keep Lightning from it: it stops inside of a step, and queues a SLURM job without that step."""
        if stage == "fit":
            trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
            self._listen()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """See that the folder can be written to, before hours of training.

        Raises:
            UserError: it cannot.
        """
        file, problem = self.file(trainer), ""
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            try:
                check_writable(file.parent)
            except DataError as error:
                problem = str(error)
        _fail_everywhere(trainer, problem)

    def _listen(self) -> None:
        self._handlers = {number: signal.signal(number, self._ask) for number in self.signals}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        self._asked = signal.Signals(number).name

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save every ``every_n_steps`` steps; save and leave when asked to."""
        self._last = batch_idx + 1 == trainer.num_training_batches or trainer.global_step == trainer.max_steps
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not self._last:
            return  # within an update: gathered gradients are in no checkpoint
        self._stop = self._agreed(trainer, self._last)
        self._due = self._stop or trainer.global_step % self.every_n_steps == 0
        if self._due and not self._last and not _validation_follows(trainer):
            # Lightning logs a step after this hook: a run that ends in between would go on without its losses. Those of
            # a step with a checkpoint are in the log twice.
            trainer._logger_connector.update_train_step_metrics()
            self._save_when_due(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was put off; at the end of an epoch it still is."""
        if self._due and not self._last:
            self._save_when_due(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save after each epoch, validation included; leave when asked to, unless it was the last."""
        self._stop = self._agreed(trainer, epoch_end=True)
        self._save(trainer)
        if self._stop and trainer.max_epochs != trainer.current_epoch + 1 and trainer.max_steps != trainer.global_step:
            self._leave(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A last checkpoint that could not be written is an error after all.

        Raises:
            UserError: the checkpoint is not that of the end.
        """
        problem = getattr(trainer.strategy.checkpoint_io, "problem", "")
        _fail_everywhere(trainer, problem and f"{problem}. Make room and go on with --ckpt_path auto.")

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop listening, now that the results are written: checkpoint callbacks come last."""
        self._restore()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop listening, unless it is the way out: SLURM's SIGTERM comes now, and is not to cut it short."""
        if not isinstance(exception, Preempted):
            self._restore()

    def _agreed(self, trainer: Trainer, epoch_end: bool = False) -> bool:
        if trainer.world_size == 1:
            return bool(self._asked)
        if trainer.global_step % self.agree_every_n_steps and not epoch_end:
            return False
        return trainer.strategy.reduce_boolean_decision(bool(self._asked), all=False)

    def _save_when_due(self, trainer: Trainer) -> None:
        self._save(trainer)
        if self._stop:
            self._leave(trainer)

    def _save(self, trainer: Trainer) -> None:
        self._due = False
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            trainer.save_checkpoint(self.file(trainer), weights_only=False)

    def _leave(self, trainer: Trainer) -> None:
        rank_zero_info(f"{self._asked or 'A signal'}: the checkpoint is written; go on with --ckpt_path auto.")
        if trainer.is_global_zero:
            requeue()
        # Where Lightning has started the other processes, it would kill this one when they leave with a status.
        getattr(trainer.strategy.launcher, "procs", []).clear()
        trainer.strategy.barrier("preempted")
        raise Preempted

    def _restore(self) -> None:
        while self._handlers:
            number, handler = self._handlers.popitem()
            signal.signal(number, handler or signal.SIG_DFL)


def _fail_everywhere(trainer: Trainer, problem: str) -> None:
    """What process 0 has found ends all of them: none is left waiting for it."""
    if problem := trainer.strategy.broadcast(problem):
        raise UserError(problem)


def _validation_follows(trainer: Trainer) -> bool:
    """Whether Lightning validates right after the step that has just ended."""
    loop = trainer.fit_loop
    return trainer.enable_validation and loop.epoch_loop._should_check_val_fx(loop._data_fetcher)  # type: ignore[arg-type]
