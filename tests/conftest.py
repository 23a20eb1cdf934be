"""Fixtures for all tests."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from hypothesis import settings
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import BartConfig, PreTrainedTokenizerFast, T5Config

from vl_peft.backbones import VLBart
from vl_peft.batch import Batch
from vl_peft.cli import main

# The same examples in every run, and no time limit for one of them: the machine may be busy.
settings.register_profile("repeatable", deadline=None, derandomize=True)
settings.load_profile("repeatable")


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real annotation files and golden values kept beside the repository; tests that need them skip without."""
    folder = Path(__file__).resolve().parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"no real data to compare with: {folder} does not exist")
    return folder


def write_tokenizer(folder: Path, words: int = 120, t5: bool = False) -> Path:
    """A tokenizer of whole words: ``<s> w4 w5 </s>`` has the ids 0 4 5 2; T5's ``w4 w5 </s>`` has 4 5 1."""
    special = {"pad_token": "<pad>", "eos_token": "</s>", "unk_token": "<unk>"} | ({} if t5 else {"bos_token": "<s>"})
    first = ("<pad>", "</s>", "<unk>", "w3") if t5 else ("<s>", "<pad>", "</s>", "<unk>")
    vocabulary = {word: i for i, word in enumerate([*first, *(f"w{i}" for i in range(4, words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ends = [(word, vocabulary[word]) for word in ("<s>", "</s>") if word in vocabulary]
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>" if t5 else "<s> $A </s>", special_tokens=ends
    )
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)
    return folder


def write_bart(folder: Path, **shape: Any) -> Path:
    """Shape and tokenizer of a tiny BART, without weights: 120 words and 200 extra tokens."""
    config = {
        "vocab_size": 320,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 64,
        "decoder_ffn_dim": 64,
        "max_position_embeddings": 64,
        "dropout": 0.0,
    }
    ids = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}
    BartConfig(**(config | ids | shape)).save_pretrained(folder)
    return write_tokenizer(folder)


def write_t5(folder: Path, **shape: Any) -> Path:
    """Shape and tokenizer of a tiny T5, without weights: 120 words and 200 extra tokens."""
    config = {"vocab_size": 320, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
    config |= {"decoder_start_token_id": 0, "dropout_rate": 0.0}
    T5Config(**(config | shape)).save_pretrained(folder)
    return write_tokenizer(folder, t5=True)


def redraw(module: nn.Module, std: float = 0.25, seed: int = 0) -> None:
    """Draw every parameter from N(0, std), norm weights around 1, so that each of them matters to the output."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        centre = 1.0 if parameter.ndim == 1 and name.endswith("weight") else 0.0
        parameter.data.copy_(centre + std * torch.randn(parameter.shape, generator=generator))


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the tokenizer of whole words."""
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session", name="write_bart")
def write_bart_fixture() -> Callable[..., Path]:
    """``write_bart(folder, **shape)``: see above. Test modules cannot import it from here."""
    return write_bart


@pytest.fixture(scope="session", name="write_tokenizer")
def write_tokenizer_fixture() -> Callable[..., Path]:
    """``write_tokenizer(folder, words, t5)``: see above."""
    return write_tokenizer


@pytest.fixture(scope="session", name="write_t5")
def write_t5_fixture() -> Callable[..., Path]:
    """``write_t5(folder, **shape)``: see above."""
    return write_t5


@pytest.fixture(scope="session", name="redraw")
def redraw_fixture() -> Callable[..., None]:
    """``redraw(module, std, seed)``: see above."""
    return redraw


@pytest.fixture(scope="session")
def bart_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shape and tokenizer of a tiny BART."""
    return write_bart(tmp_path_factory.mktemp("bart"))


@pytest.fixture(scope="session")
def make_bart(bart_folder: Path) -> Callable[..., VLBart]:
    """``make_bart(**options)``: a tiny VL-BART for features of size 8, always with the same strong random weights."""

    def make(**options: Any) -> VLBart:
        bart = VLBart(str(bart_folder), feature_dim=8, random_init=True, **options)
        redraw(bart)
        return bart.eval()

    return make


@pytest.fixture(scope="session")
def make_batch() -> Callable[..., Batch]:
    """``make_batch(task, size, text, visual, target, seed)``: a random batch without padding, two images each."""

    def make(task: str = "a", size: int = 3, text: int = 6, visual: int = 4, target: int = 3, seed: int = 0) -> Batch:
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(4, 120, (size, text + target), generator=generator)
        half = visual // 2
        return Batch(
            task=task,
            ids=[f"{task}{i}" for i in range(size)],
            input_ids=words[:, :text],
            attention_mask=torch.ones(size, text, dtype=torch.long),
            visual=torch.randn(size, visual, 8, generator=generator),
            visual_mask=torch.ones(size, visual, dtype=torch.long),
            image_index=(torch.arange(visual) >= half).long().expand(size, visual),
            object_index=(torch.arange(visual) % max(1, half)).expand(size, visual),
            boxes=torch.rand(size, visual, 4, generator=generator),
            labels=words[:, text:],
            weights=torch.rand(size, generator=generator),
        )

    return make


@pytest.fixture(scope="session")
def demo_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo corpus with its features at toy size; test processes that run side by side share it."""
    root = tmp_path_factory.getbasetemp()
    root = (root.parent if "PYTEST_XDIST_WORKER" in os.environ else root) / "demo"
    with FileLock(f"{root}.lock"):
        assert main(["data", "demo", "--root", str(root), "--scale", "0.03", "--workers", "1"]) == 0
    return root


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say how much was compared with the published code, whichever processes did it."""
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    compared = [value for report in reports for name, value in report.user_properties if name == "compared"]
    for what in sorted({what for what, _, _ in compared}):
        files = {file for kind, file, _ in compared if kind == what}
        count = sum(n for kind, _, n in compared if kind == what)
        ties = [value for report in reports for name, value in report.user_properties if name == "tie"]
        if ties and what == "golden files":
            terminalreporter.write_line(
                f"beams of equal probability (float64, 1e-6) of which another won: {', '.join(ties)}"
            )
        terminalreporter.write_line(f"parity with the published code: {len(files)} {what}, {count} tensors compared")
