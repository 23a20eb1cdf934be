"""The text of ten named real records of each video benchmark, character for character, in both protocols."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from datamodules import TVC, TVQA, YC2C, How2QA

# The first of each file, and those that are out of the ordinary (odd spans, white space, long texts, odd names).
TVQA_IDS = "137292 137648 142453 142977 139509 145670 137300 142059 147339 152543"
HOW2QA_IDS = "30351 7773 17983 757 40884 23294 38826 4079 42020 1733"
TVC_IDS = "102866 102867 102870 102883 104000 105000 106000 107000 108284 108285"
YC2C_IDS = "10337 10388 11950 12724 12022 11500 13000 13447 13827 13828"


def question(record: dict[str, Any], said: str, choices: int) -> str:
    """CONTRACT 5.c and 6.c."""
    answers = " ".join(f"a{i}: {record[f'a{i}'].strip('. ')}." for i in range(choices))
    return f"[Subs] {said} [Q] {record['q'].strip()} [TS] ({record['ts']}) [Choices] {answers}"


CASES = {
    "tvqa": (TVQA, "test", "tvqa/tvqa_test_public.jsonl", "tv", "qid", lambda r, said: question(r, said, 5)),
    "how2qa": (How2QA, "val", "how2qa/how2qa_val_release.jsonl", "how2", "qid", lambda r, said: question(r, said, 4)),
    "tvc": (
        TVC,
        "test",
        "tvc/tvc_test_public_release.jsonl",
        "tv",
        "clip_id",
        lambda r, said: f"[Subs] {said} [TS] ({r['ts']})",
    ),
    "yc2c": (YC2C, "val", "yc2c/yc2c_val_release.jsonl", "yc2", "clip_id", lambda r, said: f"[Subs] {said}"),
}
NAMED = {"tvqa": TVQA_IDS, "how2qa": HOW2QA_IDS, "tvc": TVC_IDS, "yc2c": YC2C_IDS}


@pytest.mark.parametrize("task", CASES)
@pytest.mark.parametrize("position", ["front", "end"])
def test_ten_named_records(data: Any, shared: Path, task: str, position: str) -> None:
    benchmark, split, file, channel, key, text = CASES[task]
    records = {str(r[key]): r for r in map(json.loads, (shared / "data/real" / file).read_text().splitlines())}
    ids = NAMED[task].split()
    chosen = [records[i] for i in ids]
    data.lines(f"video/ann/{file}", chosen)
    said = {r["vid_name"]: [f" Said : in {r['vid_name']}. ", "Yes\t"] for r in chosen}
    data.subtitles(channel, **said)
    examples = list(benchmark(unknown_span="verbatim", **data.options(prompt_position=position)).read(split))
    assert [e.id for e in examples] == ids and len(ids) == 10
    for example, record in zip(examples, chosen, strict=True):
        spoken = f"Said : in {record['vid_name']}. Yes"
        wanted = text(record, spoken)
        assert example.source == (f"{task}: {wanted}" if position == "front" else f"{wanted} {task}: ")
        assert example.source[slice(*example.context)] == spoken
        assert example.visuals == (record["vid_name"],)
