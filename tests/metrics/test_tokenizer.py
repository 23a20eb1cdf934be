from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vl_peft.metrics import ptb_tokenize

PUNCTUATION = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}

# What the Java program gives.
CASES = {
    "": "",
    " ... ": "",
    "A man's riding a horse, in the (park).": "a man 's riding a horse in the -lrb- park -rrb-",
    "don't can't won't it's I'm gonna Cannot wannabe": "do n't ca n't wo n't it 's i 'm gon na can not wannabe",
    "who'd've shouldn't've y'all're": "who 'd 've should n't 've y' all 're",
    "rock'n'roll rock 'n' roll Texas Hold 'Em": "rock 'n' roll rock 'n' roll texas hold 'em",
    "it\u2019s \u201cquoted\u201d \u2018text\u2019 don\u2019t": "it 's quoted text do n't",
    "the dogs' bowl, James' hat": "the dogs bowl james hat",
    "'90s 80's O'Brien o'clock ma'am ol' pal": "'90s 80 's o'brien o'clock ma'am ol' pal",
    "Dr. Pepper vs. Mr. Smith etc. in the U.S. at 5 p.m.": "dr. pepper vs. mr. smith etc. in the u.s. at 5 p.m.",
    "See No. 5, not no. of fig. 3": "see no. 5 not no of fig. 3",
    "vitamin c. It is plan B.": "vitamin c it is plan b.",
    "joey's sexuality.; end.": "joey 's sexuality. end",
    "end.Start what?Yes": "end.start what?yes",
    "5:30pm 1,000.5 $5 50% #1 1st 3D 4x4": "5:30 pm 1,000.5 $ 5 50 % # 1 1st 3d 4x4",
    "½ cup, 1½ cups, 1/2 cup": "1/2 cup 1 1/2 cups 1/2 cup",
    "add 1 1/2 cups": "add 1\u00a01/2 cups",
    "white-haired man w/ t-shirt and/or hat": "white-haired man w / t-shirt and/or hat",
    "foo--bar - baz—qux": "foo bar baz qux",
    "[a] {b} <c> <3 x<y": "-lsb- a -rsb- -lcb- b -rcb- <c> < 3 x < y",
    "AT&T R&B b&w &amp; C++ a*b": "at&t r&b b & w & c++ a * b",
    "go to www.foo.com, http://a.b/c?d or me@x.org": "go to www.foo.com http://a.b/c?d or me@x.org",
    "knee;pads :) r=demonstrate ;)": "knee pads :-rrb- r = demonstrate ;-rrb-",
    "nice!! really?! £5 10¢ ™": "nice !! really ?! # 5 10 cents ™",
    "café 👍 日本語": "café 日本語",
}


@pytest.mark.parametrize(("text", "expected"), CASES.items())
def test_known_cases(text: str, expected: str) -> None:
    assert ptb_tokenize(text) == expected


@pytest.mark.parametrize("blank", ["\n", "\r\n", "\t", "\v", "\f", "\u2028", "\u0085", "\u00a0"])
def test_every_blank_separates(blank: str) -> None:
    assert ptb_tokenize(f"line{blank}break") == "line break"


def test_golden_captions(shared: Path) -> None:
    sets = json.loads((shared / "data/golden/metric_golden.json").read_text())["sets"].values()
    items = [item for group in sets for item in group.get("items", ())]
    assert len(items) > 600
    for item in items:
        assert ptb_tokenize(item["prediction"]) == item["prediction_tokenized"]
        assert [ptb_tokenize(text) for text in item["references"]] == item["references_tokenized"]


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    """The script that compares with the Java program."""
    pytest.importorskip("pycocoevalcap", reason="the Java program comes with it")
    if shutil.which("java") is None:
        pytest.skip("the original is a Java program")
    file = Path(__file__).parents[2] / "benchmarks/tokenizer.py"
    spec = importlib.util.spec_from_file_location("tokenizer_benchmark", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_java_gives_the_same_for_odd_strings(benchmark: ModuleType) -> None:
    assert benchmark.compare("generated", benchmark.generated(2000, seed=100)) == 0


def test_java_gives_the_same_for_real_texts(benchmark: ModuleType, shared: Path) -> None:
    for name in ("tvqa", "vatex"):
        texts = list(dict.fromkeys(benchmark.sentences(shared / "data/real" / name)))
        assert len(texts) > 20_000
        assert benchmark.compare(name, texts[::5]) == 0


@given(st.text(max_size=60))
def test_any_text_gives_clean_words(text: str) -> None:
    words = ptb_tokenize(text).split(" ")
    assert words == [""] or not PUNCTUATION & set(words)
    assert "" not in words or words == [""]


@given(st.lists(st.text("abcdefghijkl", min_size=2, max_size=8), max_size=8))
def test_plain_words_stay(words: list[str]) -> None:
    assert ptb_tokenize(" ".join(words)) == " ".join(words)
    assert ptb_tokenize(", ".join(words).upper() + ".").split()[:-1] == words[:-1]
