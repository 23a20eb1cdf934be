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

FIELDS = frozenset("desc caption raw sentence sent question q a0 a1 a2 a3 a4 answer fullAnswer text".split())
BREAKS = re.compile(r"[\r\n\v\f\u2028\u2029]")

WORDS = """a the The man woman's dogs' horse riding Mother-in-law U.S. USA i I It He vitamin plan two-tone bread x-ray
    co-op e-mail re-use naïve café Zürich señor Straße 日本語 привет мир κόσμος über crème brûlée İstanbul ﬁne Ωmega
    iPhone McDonald's YouTube ABC AbC kg cm 3rd 21st 4x4 mp3 T-shirt t-shirts w/ and/or he/she 50-50 snow-covered
    foo_bar #1 #fun @home AT&T R&B Q&A rock-n-roll C++ C# a.k.a. .net Yahoo! hors-d'oeuvre""".split()
CONTRACTIONS = """don't Don't DON'T can't cannot Cannot CANNOT won't isn't I'm you're they've we'd he'll it's It’s don’t
    ’tis 'tis 'Twas 'em 'til 'cause y'all ain't gonna gotta wanna lemme gimme gimmee whatcha d'you o'clock O'Brien ma'am
    rock'n'roll 'n' n't 's 're l'amour d'Artagnan '90s 90's 80's who'd've shouldn't've James' boys' ol' somethin' s'more
    dont cant wont it`s it´s don´t""".split()
ABBREVIATIONS = """Mr. Mrs. Dr. dr. St. Jr. Inc. Co. Corp. vs. etc. e.g. i.e. a.m. p.m. P.M. U.S. U.K. Ph.D. No. no. Nos.
    fig. Fig. pp. p. Jan. Sept. Mon. Calif. Mass. ft. in. oz. lb. approx. min. sec. Gen. Sen. Rev. Prof. J. J.R.R. A.
    et al. Ave. Blvd. Rd. Mt. Ltd. Bros. Dept. Est. misc. tbsp. tsp. Ms. Messrs. art. cf.""".split()
NUMBERS = """1 12 007 1,000 1,000,000.50 3.14 .5 -5 +7 5. 5:30 5:30pm 10:15:30 1/2 1 1/2 3/4 ½ 1½ ¼ ⅓ 2nd 1990s 1990's $5
    $1.50 £5 €10 ¥100 5% 50 % 10¢ 1-2 2-3-4 10-year-old 12/25/2014 2014-12-25 555-1234 (555) 555-1234 1-800-555-1234
    +1-555-123-4567 555.123.4567 x2 2x 1e5 10^5 90° 98.6F m² H2O ² ₃ 1st. #3 No.5 5'10" 6" 1,2,3 1, 3 ١٢٣ Ⅳ ①""".split(" ")
ADDRESSES = """http://www.foo.com https://a.b/c?d=e&f=g#h www.example.org www.example.org/x.html, foo.com Foo.com foo.co.uk
    amazon.com/books me@x.org first.last@mail.example.com <me@x.org> ftp://x.y file.txt index.html, photo.JPG x.py
    @user #hashtag #日本 mailto:a@b.c http://""".split()
SYMBOLS = """. .. ... .... . . . ! !! ? ?! ?? , ,, ; : :: - -- --- ---- – — ― … ' '' ''' ` `` " "" “ ” ‘ ’ „ « » ‹ › ( ) [ ] { }
    < > << >> <b> </b> <br/> <a href="x">y</a> / // \\ | || _ __ * ** # ## $ % & &amp; &lt; &gt; &quot; &nbsp; &#39; &mdash;
    + = ~ ^ @ © ® ™ ° § ¶ • · × ÷ ± ≠ → ← ★ ♥ № ¿ ¡ :) :-) ;) :D :P :( <3 ^_^ (^_^) :/ xD =) \\/ ｡ 、 。 （ ） ！""".split(" ")
EMOJI = ["👍", "😀", "❤️", "👨‍👩‍👧", "🇩🇪", "👍🏽", "☺", "✂", "♫", "😂😂", "🍕", "☕"]
BLANKS = [" "] * 24 + ["  ", "\t", "\n", "\r\n", "\r", "\v", "\f", "\u2028", "\u2029", "\x85", "\u00a0", "\u3000", "\u200b"]
ALPHABET = "abcdeinstzABCIMNST0123459     ....,,!?'''\"-–/:;()[]{}<>&%$#@_*+=~^|\\`’“é½£日👍"


def generated(count: int, seed: int = 0) -> list[str]:
    """Texts of words, contractions, abbreviations, numbers, addresses, symbols, emoji and blanks; some of mere noise.

    Pieces are mostly set apart by blanks and in a fifth of the cases run together.
    """
    rng = random.Random(seed)
    kinds = [WORDS, CONTRACTIONS, ABBREVIATIONS, NUMBERS, ADDRESSES, SYMBOLS, EMOJI]
    texts = []
    for _ in range(count):
        if rng.random() < 0.1:
            texts.append("".join(rng.choices(ALPHABET, k=rng.randint(1, 20))))
            continue
        text = ""
        for kind in rng.choices(kinds, weights=[8, 3, 3, 3, 1, 4, 1], k=rng.randint(1, 10)):
            text += rng.choice(kind) + ("" if rng.random() < 0.2 else rng.choice(BLANKS))
        texts.append(text)
    return texts


def sentences(folder: Path) -> Iterator[str]:
    """Every text in the JSON and JSON lines files below a folder, gzipped or not, that one of ``FIELDS`` holds."""
    for file in sorted(path for path in folder.rglob("*") if path.name.removesuffix(".gz").endswith((".json", ".jsonl"))):
        content = (gzip.open if file.suffix == ".gz" else open)(file, "rt", encoding="utf-8").read()
        try:
            rows = [json.loads(content)]
        except json.JSONDecodeError:
            rows = [json.loads(line) for line in content.splitlines() if line]
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
