from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vl_peft.batch import Example
from vl_peft.errors import ConfigError
from vl_peft.tokenizer import EXTRA_TOKENS, TextTokenizer

QUESTION = "Question: why does she laugh? Options: A: it is funny B: she is sad"
SUBTITLES = "Well, I never said that. You did! I was there, and everybody heard it."


@pytest.fixture(scope="module")
def words(tokenizer_folder: Path) -> TextTokenizer:
    """``w4 w5`` has the ids 0 4 5 2."""
    return TextTokenizer(str(tokenizer_folder))


@pytest.fixture(scope="module")
def bart(shared: Path) -> TextTokenizer:
    return TextTokenizer(str(shared / "tokenizers/bart-base"))


def example(source: str, context: tuple[int, int] = (0, 0)) -> Example:
    return Example("id", source, ("image",), context=context)


def with_context(before: str, context: str, after: str) -> Example:
    return example(before + context + after, (len(before), len(before) + len(context)))


# -- the token table ------------------------------------------------------------------------------------------------


def test_extra_tokens_are_the_last_rows(words: TextTokenizer) -> None:
    ids = words.hf.get_vocab()
    assert len(EXTRA_TOKENS) == len(set(EXTRA_TOKENS)) == 200
    assert len(words) == 320
    assert [ids[f"<vis_extra_id_{i}>"] for i in (0, 1, 99)] == [319, 318, 220]
    assert [ids[f"<extra_id_{i}>"] for i in (0, 1, 99)] == [219, 218, 120]


def test_saved_extra_tokens_are_not_added_again(words: TextTokenizer, tmp_path: Path) -> None:
    words.hf.save_pretrained(tmp_path)
    again = TextTokenizer(str(tmp_path))
    assert again.hf.get_vocab() == words.hf.get_vocab()


def test_bart(bart: TextTokenizer) -> None:
    ids = bart.hf.get_vocab()
    assert len(bart) == 50265 + 200
    assert (ids["<vis_extra_id_0>"], ids["<vis_extra_id_99>"], ids["<extra_id_0>"]) == (50464, 50365, 50364)
    assert bart.encode_targets(["<vis_extra_id_7>"], None).tolist() == [[0, 50457, 2]]


def test_t5_has_its_first_hundred_extra_tokens_already(shared: Path) -> None:
    t5 = TextTokenizer(str(shared / "tokenizers/t5-base"))
    ids = t5.hf.get_vocab()
    assert len(t5) == 32100 + 100
    assert (ids["<vis_extra_id_0>"], ids["<vis_extra_id_99>"], ids["<extra_id_0>"]) == (32199, 32100, 32099)


def test_a_folder_without_tokenizer(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No tokenizer at '.*empty'"):
        TextTokenizer(str(tmp_path / "empty"))


# -- sources --------------------------------------------------------------------------------------------------------


def test_sources_are_padded_on_the_right(words: TextTokenizer) -> None:
    ids, mask = words.encode_sources([example("w4"), example("w5 w6 w7"), example("")], None)
    assert ids.tolist() == [[0, 4, 2, 1, 1], [0, 5, 6, 7, 2], [0, 2, 1, 1, 1]]
    assert mask.tolist() == [[1, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0]]
    assert ids.dtype == mask.dtype == torch.int64


@given(st.integers(0, 6), st.integers(0, 8), st.integers(0, 6), st.integers(2, 24))
def test_the_context_is_cut_first(words: TextTokenizer, before: int, inside: int, after: int, limit: int) -> None:
    numbers = iter(range(10, 100))
    first, context, last = ([next(numbers) for _ in range(n)] for n in (before, inside, after))
    texts = ["".join(f"w{i} " for i in part) for part in (first, context, last)]
    room = max(0, limit - 2 - before - after)
    kept = first + context[:room] + last
    ids, _ = words.encode_sources([with_context(*texts)], limit)
    assert ids[0].tolist() == [0, *kept[: limit - 2], 2]


@given(st.integers(0, 20), st.integers(2, 24), st.tuples(st.integers(0, 40), st.integers(0, 40)))
def test_cut_at_the_end(words: TextTokenizer, length: int, limit: int, context: tuple[int, int]) -> None:
    source = " ".join(f"w{i}" for i in range(10, 10 + length))
    ids, _ = words.encode_sources([example(source, context)], limit, cut="end")
    assert ids[0].tolist() == [0, *list(range(10, 10 + length))[: limit - 2], 2]


def test_every_example_is_cut_by_itself(words: TextTokenizer) -> None:
    examples = [with_context("w4 ", "w5 w6 w7 ", "w8"), example("w4 w5 w6 w7 w8"), example("w9")]
    ids, mask = words.encode_sources(examples, 5)
    assert ids.tolist() == [[0, 4, 5, 8, 2], [0, 4, 5, 6, 2], [0, 9, 2, 1, 1]]
    assert mask.sum(1).tolist() == [5, 5, 3]


@pytest.mark.parametrize("limit", range(24, 44))
def test_subwords_of_the_context_are_cut_first(bart: TextTokenizer, limit: int) -> None:
    outside = len(bart.hf(QUESTION)["input_ids"])
    assert 16 < outside < 24
    front, back = with_context("", SUBTITLES, " " + QUESTION), with_context(QUESTION + " ", SUBTITLES, "")
    whole = bart.hf([front.source, back.source])["input_ids"]
    ids, mask = bart.encode_sources([front, back], limit)
    for row, uncut, length in zip(ids.tolist(), whole, mask.sum(1).tolist(), strict=True):
        assert length == min(limit, len(uncut))
        assert row[0] == 0
        assert row[length - 1] == 2
    texts = bart.decode(ids)
    assert texts[0].endswith(QUESTION)
    assert texts[1].startswith(QUESTION)
    assert all(SUBTITLES.startswith(text.replace(QUESTION, "").strip()) for text in texts)


# -- targets and answers --------------------------------------------------------------------------------------------


def test_targets_are_padded_with_minus_100(words: TextTokenizer) -> None:
    labels = words.encode_targets(["w4 w5", "", "w6"], None)
    assert labels.tolist() == [[0, 4, 5, 2], [0, 2, -100, -100], [0, 6, 2, -100]]
    assert labels.dtype == torch.int64


def test_long_targets_keep_their_end_token(words: TextTokenizer) -> None:
    assert words.encode_targets(["w4 w5 w6 w7", "w8"], 4).tolist() == [[0, 4, 5, 2], [0, 8, 2, -100]]


def test_first_token_and_decode(words: TextTokenizer) -> None:
    assert words.first_token("w7 w8") == 7
    assert words.decode(torch.tensor([[2, 0, 7, 8, 2, 1], [2, 0, 319, 9, 2, 1]])) == ["w7 w8", "w9"]


def test_encoded_text_decodes_to_itself(bart: TextTokenizer) -> None:
    texts = [QUESTION, "don't, can't: 1,000 (maybe)", "a"]
    ids, _ = bart.encode_sources([example(text) for text in texts], None)
    assert bart.decode(ids) == texts
