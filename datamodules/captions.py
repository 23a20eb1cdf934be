"""Captions as the files have them, made fit to train on and to compare with."""

from __future__ import annotations

import re
from typing import Literal

from datamodules.findings import Findings
from datamodules.records import Record

LineBreaks = Literal["space", "keep"]
# All that some program takes for the end of a line; the Java tokenizer of the official scores is one of them.
_LINE_BREAK = re.compile(r"\s*[\n\r\v\f\x1c-\x1e\x85\u2028\u2029]\s*")


def captions_of(
    records: list[Record], field: str, found: Findings, line_breaks: LineBreaks = "space"
) -> list[tuple[Record, str]]:
    """Each record and its caption, without white space around it; empty captions are left out and counted.

    Args:
        records: one per caption.
        field: where they have it.
        found: counts what is odd.
        line_breaks: a line break within a caption becomes one space, or is kept.
    """
    captions = []
    for record in records:
        caption = record.require(field, str).strip()
        if _LINE_BREAK.search(caption):
            if line_breaks == "space":
                caption = _LINE_BREAK.sub(" ", caption)
            found.note(f"captions have line breaks; {'now spaces' if line_breaks == 'space' else 'kept'}", record)
        if caption:
            captions.append((record, caption))
        else:
            found.note("captions are empty; left out", record)
    return captions
