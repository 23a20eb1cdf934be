r"""The Python caption tokenizer against the Java one of the COCO evaluation: how many texts differ, and which.

    python benchmarks/tokenizer.py [FOLDER]

Needs ``java`` and ``pip install pycocoevalcap``. Compares every caption, question, answer and sentence in the JSON
files below FOLDER (annotation files of the benchmarks, sample predictions), then 20,000 generated strings. Prints the
first 50 differences of each and their number by kind.

Java gets one text per line in a single run, in which each line break within a text is a space (officially such a text
shifts all that follow). It looks across the end of a line: after a single letter and a period it asks whether the next
line begins a sentence, and a line that ends in a URL, an e-mail address or a hyphen may go on. So between two texts
there is always a neutral line, ``zz``.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from vl_peft.metrics import ptb_tokenize

PIECES = Path(__file__).with_name("tokenizer_pieces.txt")  # on each line a kind, how often it is drawn, its pieces
BLANKS = [*[" "] * 24, "  ", *"\t\n\r\v\f\u2028\u2029\u0085\u00a0\u3000\u200b", "\r\n"]
BREAKS = re.compile(r"[\r\n\v\f\u2028\u2029]")
FIELDS = frozenset(
    (
        "desc",
        "caption",
        "raw",
        "sentence",
        "sent",
        "question",
        "q",
        "a0",
        "a1",
        "a2",
        "a3",
        "a4",
        "answer",
        "fullAnswer",
    )
)


def generated(count: int, seed: int = 0) -> list[str]:
    """Texts of words, contractions, abbreviations, numbers, addresses, symbols, emoji and blanks; some of mere noise.

    Pieces are mostly set apart by blanks and in a fifth of the cases run together.
    """
    rng = random.Random(seed)
    lines = [line.split() for line in PIECES.read_text(encoding="utf-8").splitlines()]
    kinds, weights = [line[2:] for line in lines], [int(line[1]) for line in lines]
    characters = next(line[2:] for line in lines if line[0] == "noise")
    texts = []
    for _ in range(count):
        if rng.random() < 0.1:
            texts.append("".join(rng.choices([*characters, *"     ....,,"], k=rng.randint(1, 20))))
        else:
            drawn = rng.choices(kinds, weights=weights, k=rng.randint(1, 10))
            texts.append("".join(rng.choice(k) + ("" if rng.random() < 0.2 else rng.choice(BLANKS)) for k in drawn))
    return texts


def sentences(folder: Path) -> Iterator[str]:
    """Every text in the JSON and JSON lines files below a folder, gzipped or not, that one of ``FIELDS`` holds."""
    files = [path for path in folder.rglob("*") if path.name.removesuffix(".gz").endswith((".json", ".jsonl"))]
    for file in sorted(files):
        content = (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8").read()
        try:
            rows = [json.loads(content)]
        except json.JSONDecodeError:
            rows = [json.loads(line) for line in content.split("\n") if line]
        yield from _texts(rows)


def _texts(value: Any) -> Iterator[str]:
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if isinstance(item, str) and key in FIELDS:
            yield item
        else:
            yield from _texts(item)


def java_tokenize(texts: Sequence[str]) -> list[str]:
    """What the official Java tokenizer makes of each text."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    lines = {i: [{"caption": BREAKS.sub(" ", text)}, {"caption": "zz"}] for i, text in enumerate(texts)}
    tokens = PTBTokenizer().tokenize(lines)
    if any(tokens[i][1] != "zz" for i in lines):
        raise RuntimeError("a text broke the line structure of the Java tokenizer's output")
    return [tokens[i][0] for i in lines]


def compare(title: str, texts: Sequence[str], show: int = 50) -> int:
    """Print how many of the texts the two tokenize differently, and the first of them; return their number."""
    differing = [(t, j, p) for t, j in zip(texts, java_tokenize(texts), strict=True) if (p := ptb_tokenize(t)) != j]
    print(f"{title}: {len(differing)} of {len(texts):,} texts differ")
    for text, java, python in differing[:show]:
        print(f"  {text!r}\n    java    {java!r}\n    python  {python!r}")
    kinds = Counter(kind(java, python) for _, java, python in differing)
    for name, count in kinds.most_common():
        print(f"  {count:6} {name}")
    return len(differing)


def kind(java: str, python: str) -> str:
    """What sort of difference: other places of division, other spelling, or words that only one of them has."""
    if java.replace(" ", "") == python.replace(" ", ""):
        return "divided elsewhere"
    return "same number of words, spelt otherwise" if java.count(" ") == python.count(" ") else "more or fewer words"


def main() -> None:
    """Compare and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="folder with annotation files")
    parser.add_argument("--generated", type=int, default=20_000, help="number of generated strings (20000)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if options.folder:
        compare(f"texts below {options.folder}", list(dict.fromkeys(sentences(options.folder))))
    compare("generated strings", generated(options.generated, options.seed))


if __name__ == "__main__":
    main()
