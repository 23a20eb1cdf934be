"""What the eight benchmarks share: from annotation files and features to examples and batches."""

from __future__ import annotations

from abc import abstractmethod
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from lightning_utilities.core import rank_zero
from lightning_utilities.core.rank_zero import rank_zero_info

from datamodules.findings import Findings
from datamodules.loading import Form, Size, Split, TaskData
from datamodules.packed import PackedExamples
from vl_peft.batch import Batch, Example, Generation, Task
from vl_peft.collate import NOT_YET, Visual, collate, draw_target, shortened, with_pictures
from vl_peft.errors import ConfigError, DataError
from vl_peft.features.find import find_store
from vl_peft.features.packed import PackedStore
from vl_peft.features.raw import RawStore
from vl_peft.features.store import CachedStore, FeatureStore, ImageFolderStore, VideoFolderStore
from vl_peft.metrics import SentenceMetric
from vl_peft.sampling import Draw
from vl_peft.submission import Submission
from vl_peft.tokenizer import TextTokenizer


class Benchmark(TaskData):
    """One benchmark: its files, text, lengths and metric. Nothing here knows of a model.

    Args:
        batch_size: examples per step, of each process or of all together (``batch``).
        eval_batch_size: for validation and test; ``None`` is the same.
        use_prompt: put the task's prompt to the text.
        prompt_text: a prompt in place of the benchmark's own.
        generation: how answers are generated, in place of the benchmark's own way.
        max_source: most tokens of the text, in place of the benchmark's own limit.
        max_target: most tokens of a target, likewise.
        shared: the arguments of :class:`TaskData`. Inside a ``MultiTask`` they are set there.
    """

    task: Task
    prompt: ClassVar[str]
    max_source: int | None
    max_target: int | None
    visual_kind: ClassVar[Literal["grid", "frames"]]
    visual_tokens: ClassVar[int]
    media_patterns: tuple[str, ...] = ()  # where the images or videos are, below the root
    sizes: ClassVar[Mapping[str, Size]] = {}  # of the parts that splits are made of
    vocabulary: ClassVar[str | None] = None  # a file of answers below the root, for those who have it

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        use_prompt: bool = True,
        prompt_text: str | None = None,
        generation: Generation | None = None,
        max_source: int | None = None,
        max_target: int | None = None,
        **shared: object,
    ) -> None:
        super().__init__(**shared)  # type: ignore[arg-type]
        if generation is not None:
            self.task = replace(self.task, generation=generation)
        self.max_source, self.max_target = max_source or self.max_source, max_target or self.max_target
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.prompt_text = (self.prompt if prompt_text is None else prompt_text) if use_prompt else ""
        self._examples: dict[Split, Sequence[Example]] = {}
        self._stores: dict[str, FeatureStore] = {}
        self._sizes: dict[Split, int] = {}
        self.unreadable: dict[str, str] = {}
        self._reported: set[str] = set()
        self.found: dict[Split, Findings] = {}  # when a split was last read

    @abstractmethod
    def read(self, split: Split) -> Iterator[Example]:
        """Parse the annotation files of a split, in file order."""

    @abstractmethod
    def files(self, split: Split) -> Mapping[Form, Sequence[Path]]:
        """The files that a split needs, for each form that has it; the form to prefer comes first."""

    def form(self, split: Split) -> Form:
        """Which form of a split is read."""
        return next(iter(self.files(split)))

    def parts(self, split: Split) -> Sequence[str]:
        """What a split is made of, by the names that ``sizes`` has for it; empty if nothing is known of its size."""
        return ()

    def references(self, file: Path) -> Iterator[Example]:
        """What the metric compares with, of one annotation file wherever it is; texts and visual keys may be empty.

        Raises:
            ConfigError: the benchmark does not know how.
        """
        raise ConfigError(f"{self.task.name} reads its references below a data root only: give --root and --split.")

    @abstractmethod
    def metric(self) -> SentenceMetric:
        """A fresh metric of this benchmark."""

    @abstractmethod
    def feature_folder(self, split: Split) -> str:
        """Where the features of a split are: a path below the root in which ``{encoder}`` stands for its name."""

    def submission(self, split: Split) -> Submission | None:
        """The file in which a server wants the predictions of a split; ``None`` if it does not want them."""
        return None

    @property
    def benchmarks(self) -> Mapping[str, Benchmark]:
        """Itself alone."""
        return {self.task.name: self}

    @property
    def root(self) -> Path:
        """The data root."""
        return Path(self.loading.root)

    @cached_property
    def tokenizer(self) -> TextTokenizer:
        """The tokenizer of the backbone."""
        return TextTokenizer(self.loading.tokenizer)

    def prompted(self, text: str) -> str:
        """The text with the task's prompt before or after it."""
        return self.prompt_text + text if self.loading.prompt_position == "front" else f"{text} {self.prompt_text}"

    def prompted_with_context(self, before: str, context: str, after: str) -> tuple[str, tuple[int, int]]:
        """The prompted text ``before + context + after`` and the span of the context in it."""
        source = self.prompted(before + context + after)
        start = len(before) + (len(self.prompt_text) if self.loading.prompt_position == "front" else 0)
        return source, (start, start + len(context))

    def report(self, message: str, everywhere: bool = False) -> None:
        """Tell the user something about the data, once: on the first process, or on any that knows of it."""
        if message not in self._reported:
            self._reported.add(message)
            tell = rank_zero.log.info if everywhere else rank_zero_info
            tell(f"{self.task.name}: {message}")

    def report_unreadable(self, problems: Mapping[str, str]) -> None:
        """Tell which features could not be read and why: each key once, on the process that needed it."""
        for key in problems.keys() - self.unreadable.keys():
            self.report(f"{problems[key]} Zeros take the place of these features", everywhere=True)
        self.unreadable.update(problems)

    @contextmanager
    def findings(self, split: Split) -> Iterator[Findings]:
        """Count what is odd while a split is read, and report it in the end."""
        found = self.found[split] = Findings(self.loading.malformed)
        yield found
        for kind in found.kinds():
            self.report(f"{split}: {kind}")

    def examples(self, split: Split) -> Sequence[Example]:
        """All examples of a split, parsed once, without those that have no features if these are to be skipped.

        Raises:
            DataError: if the split is empty or features are missing.
        """
        if split not in self._examples:
            examples = self.collect(split)
            if not len(examples):
                raise DataError(self.root, f"the {split} split of {self.task.name} is empty", remedy="Check its files.")
            self._examples[split] = examples
        return self._examples[split]

    def annotated(self, split: Split) -> Sequence[Example]:
        """All examples of a split, whether or not there are features."""
        return PackedExamples(self.read(split))

    def collect(self, split: Split) -> Sequence[Example]:
        """Read a split into memory."""
        return PackedExamples(self._with_features(self.read(split), split))

    def _with_features(self, examples: Iterable[Example], split: Split) -> Iterator[Example]:
        known = set(self.store(split).keys())
        missing: dict[str, int] = defaultdict(int)
        for example in examples:
            absent = [key for key in example.visuals if key not in known]
            for key in absent:
                missing[key] += 1
            if not absent:
                yield example
        self.without_features(missing, split)

    def without_features(self, missing: Mapping[str, int], split: Split) -> None:
        """Report the keys that have no features, and of how many examples they are; raises DataError if that fails."""
        if missing:
            lacking = "features" if self.loading.raw is None else "files"
            what = (
                f"no {lacking} for {len(missing)} keys of {sum(missing.values())} {self.task.name} {split} examples "
                f"({', '.join(list(missing)[:10])}{', ...' if len(missing) > 10 else ''})"
            )
            if self.loading.missing_features == "fail":
                remedy = "Extract them" if self.loading.raw is None else "Put them there"
                remedy += ", or leave these examples out with --data.missing_features skip."
                raise DataError(self.store(split).path, what, remedy=remedy)
            self.report(f"{what}: skipped")

    def commonest_target(self) -> str:
        """The training target of the largest total weight: what a constant answer would be."""
        totals: dict[str, float] = defaultdict(float)
        for example in self.examples("train"):
            for target, weight in zip(example.targets, example.weights, strict=True):
                totals[target] += weight
        return max(totals, key=lambda target: totals[target])

    def media(self, key: str) -> Path | None:
        """The image or video file of a visual key, where it is at hand."""
        return self._media.get(key)

    @cached_property
    def _media(self) -> dict[str, Path]:
        """All image or video files by key: folders are listed once. Of several files the first pattern's is taken."""
        patterns = (pattern.format(key="*") for pattern in self.media_patterns)
        files = [path for pattern in patterns for path in sorted(self.root.glob(pattern))]
        return {path.stem: path for path in reversed(files)}

    def store(self, split: Split) -> FeatureStore:
        """The features of a split, or the pictures to make them of.

        Raises:
            DataError: if they are missing.
            ConfigError: if it is not clear which encoder's features to take.
        """
        pattern = self.feature_folder(split)
        if pattern not in self._stores:
            store = self._new_store(pattern)
            mapped = isinstance(store, PackedStore)  # into memory: it needs no cache
            self._stores[pattern] = store if mapped else CachedStore(store, int(self.loading.cache_gb * 2**30))
        return self._stores[pattern]

    def _new_store(self, pattern: str) -> FeatureStore:
        if self.loading.raw is not None:
            return RawStore(self.root, self._media, self.loading.raw, self.visual_kind)
        kind = ImageFolderStore if self.visual_kind == "grid" else VideoFolderStore
        return find_store(self.root, pattern, self.loading.encoder, kind)

    def load(self, split: Split, draw: Draw) -> Batch:
        """The batch of the drawn rows. Training draws one target per example; evaluation keeps the examples."""
        examples = [self.examples(split)[row] for row in draw.rows]
        targets = None
        if split == "train":
            targets = [draw_target(e, self.loading.seed, draw.epoch) for e in examples]
        raw, unreadable = self.loading.raw is not None, dict[str, str]()
        pad_to = self.visual_tokens if self.visual_kind == "frames" and not self.loading.mask_padding else None
        batch = collate(
            task=self.task.name,
            examples=examples,
            targets=targets,
            visuals=[[NOT_YET if raw else self._visual(split, key, unreadable) for key in e.visuals] for e in examples],
            tokenizer=self.tokenizer,
            max_source=self.max_source,
            max_target=self.max_target,
            cut=self.loading.cut,
            pad_visual_to=None if raw else pad_to,
        )
        if raw:
            pictures = [[self.store(split).read(key) for key in e.visuals] for e in examples]
            batch = with_pictures(
                batch, pictures, self.visual_kind, self.visual_tokens, pad_to, self.loading.ablate_visual
            )
        return replace(batch, unreadable=unreadable, examples=[] if split == "train" else examples)

    def feature_size(self, split: Split) -> int:
        """F of a split's features, by any one file; where damaged ones are allowed, by the first that is sound."""
        store = self.store(split)
        if self.loading.unreadable_features == "fail":
            return store.dim
        if split not in self._sizes:
            self._sizes[split] = next(filter(None, map(partial(_size_of, store), store.keys())), 0) or store.dim
        return self._sizes[split]

    def _visual(self, split: Split, key: str, unreadable: dict[str, str]) -> Visual:
        try:
            store = self.store(split)
            visual = shortened(store, key, store.read(key), self.visual_kind, self.visual_tokens)
        except DataError as error:
            if self.loading.unreadable_features == "fail":
                raise
            unreadable[key] = str(error)
            return Visual(np.zeros((self.visual_tokens, self.feature_size(split)), np.float32))
        return Visual(np.zeros_like(visual.features)) if self.loading.ablate_visual else visual


def _size_of(store: FeatureStore, key: str) -> int | None:
    try:
        return int(store.read(key).shape[1])
    except DataError:
        return None
