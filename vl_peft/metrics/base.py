"""What all benchmark metrics share: a store of predictions keyed by example id, merged over ranks before scoring."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch.distributed as dist
from torchmetrics import Metric

from vl_peft.errors import UserError


class Record(NamedTuple):
    """One prediction: the text, what it is compared with, and further facts of the example."""

    prediction: str
    references: tuple[Any, ...]
    meta: Mapping[str, Any]


class SentenceMetric(Metric):
    """A metric of predicted texts that is exact under distributed evaluation.

    Examples are known by their id: one that was seen twice (a ``DistributedSampler`` fills up uneven shards) counts
    once, and the last prediction stands; between ranks, that of the highest rank. ``compute()`` therefore returns the
    same number on every rank as one process does. Ranks without any example are fine.

    Subclasses define ``score`` and ``headline``, and may define ``extra``.

    Attributes:
        headline: the key, in what ``compute`` returns, of the number the benchmark is known by.
        thorough: ``compute`` also gives the scores that are slow or need other programs (``extra``). Off at first;
            ``VLModule`` turns it on in evaluations outside of training.
        notes: what a reader of the last computed scores has to know, such as a score that is missing.
    """

    headline: ClassVar[str]
    higher_is_better = True
    is_differentiable = False
    full_state_update = True

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._records: dict[str, Record] = {}
        self._scored: dict[str, Record] = {}
        self.thorough = False
        self.notes: tuple[str, ...] = ()

    def update(
        self,
        ids: Sequence[str],
        predictions: Sequence[str],
        references: Sequence[Sequence[Any]],
        metas: Sequence[Mapping[str, Any]] | None = None,
    ) -> None:
        """Add a batch: B ids, B predicted texts, the references of each and, if the metric uses it, ``Example.meta``.

        Raises:
            ValueError: the arguments differ in length.
        """
        rows = zip(ids, predictions, references, metas if metas is not None else [{}] * len(ids), strict=True)
        for key, prediction, reference, meta in rows:
            self._records[key] = Record(prediction, tuple(reference), meta)

    def compute(self) -> dict[str, float]:
        """The scores in percent over all ranks; none at all for a split whose labels are hidden.

        Raises:
            UserError: there is nothing to score on any rank, or only some examples have references.
        """
        if not self._records:
            raise UserError(f"{type(self).__name__}: no prediction to score. Is the evaluation split empty?")
        self._scored = dict(sorted(self._records.items()))
        unlabelled = [key for key, record in self._scored.items() if not record.references]
        if len(unlabelled) == len(self._scored):
            return {}
        if unlabelled:
            raise UserError(
                f"{type(self).__name__}: example {unlabelled[0]!r} and {len(unlabelled) - 1} others have no references,"
                f" the other {len(self._scored) - len(unlabelled)} have."
            )
        self.notes = ()
        scores = self.score(self._scored)
        return scores | self._extra_for_all() if self.thorough else scores

    def _extra_for_all(self) -> dict[str, float]:
        """``extra`` as rank zero computes it, with its notes: so all ranks have the same scores."""
        group = self.process_group if self._is_synced else None
        rank = dist.get_rank(group) if self._is_synced else 0
        found: list[Any] = [self.extra(self._scored), self.notes] if rank == 0 else [None, None]
        if self._is_synced:
            dist.broadcast_object_list(found, group=group, group_src=0)
        self.notes = found[1]
        return dict(found[0])

    def extra(self, records: Mapping[str, Record]) -> dict[str, float]:
        """Further scores in percent, for ``thorough``; runs on rank zero only, adds to ``notes`` what it left out."""
        return {}

    @abstractmethod
    def score(self, records: Mapping[str, Record]) -> dict[str, float]:
        """The scores in percent of at least one record; ``records`` is sorted by id."""

    @property
    def records(self) -> Mapping[str, Record]:
        """Predictions by id: those of all ranks, sorted, after ``compute``; before it, those of this rank."""
        return self._scored if self._computed is not None else self._records

    def reset(self) -> None:
        """Forget all predictions."""
        super().reset()
        self._records, self._scored, self.notes = {}, {}, ()

    # The next two are torchmetrics' own hooks, called by sync(), unsync() and forward(): what has to be put back
    # after a synchronised compute, and how to synchronise. Its states are tensors; texts travel as objects.
    def _copy_state_dict(self) -> dict[str, Any]:
        return {**super()._copy_state_dict(), "_records": dict(self._records)}

    def _sync_dist(self, dist_sync_fn: Callable[..., Any] | None = None, process_group: Any | None = None) -> None:
        group = process_group or self.process_group
        shards: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(shards, self._records, group=group)
        self._records = {key: record for shard in shards for key, record in shard.items()}
