"""Shape and tokenizer of the demo backbone, before it is pretrained.

    python experiments/demo/init_backbone.py data/demo runs/demo-backbone/init

Trains a byte-level BPE tokenizer on the texts of the pretraining split and writes it with a BART of random weights,
whose position embeddings begin as sinusoids: without them it takes far longer to learn that words stand side by side.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast

from vl_peft.tokenizer import EXTRA_TOKENS

SPECIAL = {"bos_token": "<s>", "pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>", "mask_token": "<mask>"}


def texts(root: Path) -> Iterator[str]:
    """Every caption, question, answer, choice and subtitle of the pretraining split."""
    for line in (root / "pretrain/captions.jsonl").read_text().splitlines():
        yield from json.loads(line)["captions"]
    for line in (root / "pretrain/questions.jsonl").read_text().splitlines():
        record = json.loads(line)
        yield " ".join([record["subtitles"] or "", record["question"], record["answer"], *(record["choices"] or [])])


def train_tokenizer(root: Path, size: int) -> PreTrainedTokenizerFast:
    """A BART-like tokenizer: ``<s> text </s>``, bytes as the alphabet, spaces kept."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    # A word at the beginning of a text is the same token as elsewhere; digits stand alone.
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=list(SPECIAL.values()),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts(root), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=1024, **SPECIAL)


def sinusoids(length: int, dim: int) -> torch.Tensor:
    """``[length, dim]`` of mean 0 and standard deviation 1: sines, then cosines of ``dim / 2`` frequencies."""
    frequencies = torch.exp(-math.log(2000) * torch.arange(dim // 2) / (dim // 2))
    angles = torch.arange(length)[:, None] * frequencies
    table = torch.cat([angles.sin(), angles.cos()], dim=1)
    table -= table.mean(dim=0)
    return table / table.std()


def main() -> None:
    """Write the folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--vocabulary", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=160)
    parser.add_argument("--seed", type=int, default=42)
    options = parser.parse_args()
    tokenizer = train_tokenizer(options.root, options.vocabulary)
    tokenizer.add_tokens(EXTRA_TOKENS, special_tokens=True)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=options.dim,
        encoder_layers=4,
        decoder_layers=2,
        encoder_attention_heads=5,
        decoder_attention_heads=5,
        encoder_ffn_dim=4 * options.dim,
        decoder_ffn_dim=4 * options.dim,
        max_position_embeddings=640,
        dropout=0.0,  # no example is seen more than a few times
        attention_dropout=0.0,
        init_std=0.05,
        bos_token_id=0,
        pad_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=2,
        forced_eos_token_id=2,
    )
    torch.manual_seed(options.seed)
    model = BartForConditionalGeneration(config)
    for stack in (model.model.encoder, model.model.decoder):
        stack.embed_positions.weight.data.copy_(sinusoids(*stack.embed_positions.weight.shape) * 2 * config.init_std)
    tokenizer.save_pretrained(options.out)
    model.save_pretrained(options.out)
    print(f"{len(tokenizer)} tokens -> {options.out}")


if __name__ == "__main__":
    main()
