"""Text to token ids and back, with the 200 extra tokens of VL-BART and VL-T5."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from transformers import AutoTokenizer

from vl_peft.batch import Example
from vl_peft.errors import ConfigError

EXTRA_TOKENS = [f"<{kind}_{i}>" for kind in ("extra_id", "vis_extra_id") for i in range(99, -1, -1)]
"""Sentinels for masked spans, then object-order tokens; the last rows of the token table, read backwards."""


def pretrained_folder(name: str) -> str:
    """``"demo"`` stands for the backbone inside this package; anything else is a folder or a model hub's name."""
    return str(Path(__file__).parent / "backbones" / "demo") if name == "demo" else name


class TextTokenizer:
    """The fast tokenizer of a backbone.

    Args:
        name: folder or hub name, as for ``AutoTokenizer``, or ``"demo"``.

    Raises:
        ConfigError: if there is no such tokenizer.
    """

    def __init__(self, name: str) -> None:
        try:
            self.hf: Any = AutoTokenizer.from_pretrained(pretrained_folder(name), use_fast=True)
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"No tokenizer at '{name}': give a folder with tokenizer.json, the name of a model on the hub "
                f"(which needs a network), or 'demo'. ({str(error).splitlines()[0]})"
            ) from error
        known = self.hf.get_vocab()
        self.hf.add_tokens([t for t in EXTRA_TOKENS if t not in known], special_tokens=True)

    def __len__(self) -> int:
        """Rows that the backbone's token table needs."""
        return len(self.hf)

    def encode_sources(
        self, examples: Sequence[Example], max_length: int | None, cut: Literal["context", "end"] = "context"
    ) -> tuple[Tensor, Tensor]:
        """Source texts to ``input_ids`` and ``attention_mask``, int64 ``[B, L]``, padded on the right.

        Args:
            examples: their ``source`` is encoded.
            max_length: the most tokens, special tokens included; ``None`` for no limit.
            cut: what a text that is too long loses: the last tokens of its ``context`` first, or just its end.
        """
        encoded = self.hf([e.source for e in examples], return_offsets_mapping=True)
        rows = [
            _shorten(ids, offsets, example.context if cut == "context" else (0, 0), max_length)
            for ids, offsets, example in zip(encoded["input_ids"], encoded["offset_mapping"], examples, strict=True)
        ]
        ids = _pad(rows, self.hf.pad_token_id)
        lengths = torch.tensor([len(row) for row in rows])
        return ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()

    def encode_targets(self, texts: Sequence[str], max_length: int | None) -> Tensor:
        """Target texts to labels, int64 ``[B, T]``, special tokens included, -100 as padding."""
        rows = [_shorten(ids, [], (0, 0), max_length) for ids in self.hf(list(texts))["input_ids"]]
        return _pad(rows, -100)

    def lengths(self, texts: Sequence[str]) -> list[int]:
        """How many tokens each text has, special tokens included, before anything is cut."""
        return [len(ids) for ids in self.hf(list(texts), verbose=False)["input_ids"]]

    def first_token(self, text: str) -> int:
        """Id of the first token of a text, special tokens left out."""
        return int(self.hf(text, add_special_tokens=False)["input_ids"][0])

    def decode(self, ids: Tensor) -> list[str]:
        """Generated ids ``[B, T]`` to texts, special tokens left out."""
        return [text.strip() for text in self.hf.batch_decode(ids, skip_special_tokens=True)]


def _shorten(
    ids: list[int], offsets: list[tuple[int, int]], context: tuple[int, int], max_length: int | None
) -> list[int]:
    """Drop the last tokens of the context, then tokens before the final special token, until the row fits."""
    if max_length is None or len(ids) <= max_length:
        return ids
    start, end = context
    inside = [i for i, (a, b) in enumerate(offsets) if start <= a < b <= end]
    dropped = set(inside[max(0, len(inside) - (len(ids) - max_length)) :])
    ids = [token for i, token in enumerate(ids) if i not in dropped]
    return ids if len(ids) <= max_length else ids[: max_length - 1] + ids[-1:]


def _pad(rows: list[list[int]], value: int) -> Tensor:
    out = torch.full((len(rows), max(map(len, rows))), value)
    for i, row in enumerate(rows):
        out[i, : len(row)] = torch.tensor(row)
    return out
