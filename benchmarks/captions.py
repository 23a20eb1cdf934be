"""Time of the caption metrics against that of the COCO evaluation's own programs, tokenization included.

    python benchmarks/captions.py VATEX_JSONL

Needs ``java`` and ``pip install pycocoevalcap``. VATEX_JSONL is ``vatex_en_c_val_release.jsonl``: 3,000 videos with ten
captions. All ten are references; the prediction is the first caption of the next video. Both sides score BLEU, ROUGE-L
and CIDEr from the same raw texts, in turn, three times; the scores are compared too.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import time
from pathlib import Path

from vl_peft.metrics import CaptionMetrics


def ours(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    """Scores by this package, in percent."""
    metric = CaptionMetrics()
    metric.update([str(i) for i in range(len(predictions))], predictions, references)
    return metric.compute()


def theirs(predictions: list[str], references: list[list[str]]) -> dict[str, float]:
    """Scores by pycocoevalcap and its Java tokenizer, in percent."""
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    truths = PTBTokenizer().tokenize({i: [{"caption": t} for t in texts] for i, texts in enumerate(references)})
    guesses = PTBTokenizer().tokenize({i: [{"caption": text}] for i, text in enumerate(predictions)})
    with contextlib.redirect_stdout(io.StringIO()):  # it prints lengths and ratio
        scores = {f"Bleu_{n}": value for n, value in enumerate(Bleu(4).compute_score(truths, guesses)[0], start=1)}
    scores["ROUGE_L"] = Rouge().compute_score(truths, guesses)[0]
    scores["CIDEr"] = Cider().compute_score(truths, guesses)[0]
    return {name: 100.0 * value for name, value in scores.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("vatex", type=Path)
    rows = [json.loads(line) for line in parser.parse_args().vatex.read_text(encoding="utf-8").split("\n") if line]
    references = [[description["desc"] for description in row["descs"]] for row in rows]
    predictions = [texts[0] for texts in references[1:] + references[:1]]
    for _ in range(3):
        times, scores = [], []
        for score in (ours, theirs):
            start = time.perf_counter()
            scores.append(score(predictions, references))
            times.append(time.perf_counter() - start)
        gap = max(abs(value - scores[0][name]) for name, value in scores[1].items())
        print(
            f"vl_peft {times[0]:5.2f} s   pycocoevalcap {times[1]:5.2f} s   ratio {times[0] / times[1]:.2f}   "
            f"largest difference of a score {gap:.1e}"
        )


if __name__ == "__main__":
    main()
