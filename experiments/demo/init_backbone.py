"""Shape and tokenizer of the demo backbone, before it is pretrained.

    python experiments/demo/init_backbone.py data/demo runs/demo-backbone/init

Trains an uncased byte-level BPE tokenizer on the texts of the pretraining split and writes it with a BART of random
weights, except that some attention heads begin by looking at the neighbouring word and others at the same word
elsewhere (after Trockman and Kolter 2023, "Mimetic Initialization of Self-Attention Layers"). From random weights alone
a model of this size did not learn in thousands of steps to find the label in front of a word; so it does in hundreds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch.nn import functional
from transformers import BartConfig, BartForConditionalGeneration, PreTrainedTokenizerFast
from transformers.models.bart.modeling_bart import BartAttention

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
    """A BART-like tokenizer: ``<s> text </s>``, bytes as the alphabet, spaces kept, lower case."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    # A word at the beginning of a text or with a capital is the same token as elsewhere; digits stand alone.
    tokenizer.normalizer = normalizers.Sequence([normalizers.Lowercase(), normalizers.Prepend(" ")])
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
    """``[length, dim]``: sines and cosines of ``dim / 4`` frequencies (radians per word); the second half is 0."""
    angles = torch.arange(length)[:, None] * frequencies(dim)
    return functional.pad(torch.cat([angles.sin(), angles.cos()], dim=1), (0, dim - dim // 2))


def frequencies(dim: int) -> torch.Tensor:
    """From 2 down to 0.02 radians per word, ``[dim / 4]``."""
    return 2.0 * torch.logspace(0, -2, dim // 4)


def look_beside(attention: BartAttention, head: int, distance: int) -> None:
    """Let a head begin by looking ``distance`` words on: its query is its key, turned by that much."""
    dim, size = attention.embed_dim, attention.head_dim
    count, first = size // 2, torch.arange(size // 2)
    turn = frequencies(dim)[:count] * distance
    key, query = torch.zeros(size, dim), torch.zeros(size, dim)
    sines, cosines = first, dim // 4 + first
    key[first, sines] = key[count + first, cosines] = 1
    query[first, sines] = query[count + first, cosines] = turn.cos()
    query[first, cosines], query[count + first, sines] = turn.sin(), -turn.sin()
    rows = slice(head * size, (head + 1) * size)
    attention.k_proj.weight.data[rows], attention.q_proj.weight.data[rows] = 1.25 * key, 1.25 * query


def look_alike(attention: BartAttention, head: int) -> None:
    """Let a head begin by looking at the same word elsewhere: query and key are one map of what is no position."""
    dim, size = attention.embed_dim, attention.head_dim
    same = functional.pad(0.15 * torch.randn(size, dim - dim // 2), (dim // 2, 0))
    rows = slice(head * size, (head + 1) * size)
    attention.k_proj.weight.data[rows] = attention.q_proj.weight.data[rows] = same


def lend_structure(model: BartForConditionalGeneration) -> None:
    """Positions in one half of the dimensions; in the encoder first neighbours, then likeness; likeness across."""
    encoder, decoder = model.model.encoder, model.model.decoder
    for positions in (encoder.embed_positions.weight, decoder.embed_positions.weight):
        positions.data.copy_(2 * model.config.init_std * sinusoids(*positions.shape))
    for number, layer in enumerate(encoder.layers):
        if number < 2:
            for head, distance in enumerate((-1, -2, 1)):
                look_beside(layer.self_attn, head, distance)
        for head in (3,) if number < 2 else (0, 1):
            look_alike(layer.self_attn, head)
    for layer in decoder.layers:
        for head in (0, 1):
            look_alike(layer.encoder_attn, head)


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
    lend_structure(model)
    tokenizer.save_pretrained(options.out)
    model.save_pretrained(options.out)
    print(f"{len(tokenizer)} tokens -> {options.out}")


if __name__ == "__main__":
    main()
