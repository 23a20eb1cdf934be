"""The objectives that the demo backbone is pretrained with."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from datamodules.demo.pretrain import write_language
from datamodules.demo.pretrain_objects import STEPS
from datamodules.demo.pretrain_videos import WAYS
from datamodules.demo.pretraining import Pretraining
from datamodules.demo.world import COLORS, PLACES, SHAPES
from vl_peft.batch import Example


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The texts of 70 images and 70 videos; the files they are about are not needed here."""
    root = tmp_path_factory.mktemp("pretraining")
    (root / "pretrain").mkdir()
    write_language(root, 0, 70, 70)
    return root


@pytest.fixture
def read(root: Path) -> Any:
    return lambda *kind, split="train", **options: list(Pretraining(*kind, root=str(root), **options).read(split))


def test_held_out_items_are_not_trained_on(read: Any) -> None:
    train, val = ({e.visuals for e in read("caption", split=split)} for split in ("train", "val"))
    assert len(train) + len(val) == 70 and val and not train & val


def test_every_example_is_known_by_its_id(read: Any) -> None:
    for kind in ("image", "video"):
        for objective in ("caption", "mask", "question", "pair", "lookup", *STEPS):
            examples: list[Example] = read(objective, kind)
            assert len({e.id for e in examples}) == len(examples) > 60
            assert examples == read(objective, kind), "the same at every reading"


def test_masked_text_is_restored(read: Any) -> None:
    masked = [e.source.removeprefix("restore ").split() for e in read("mask")]
    whole = [e.targets[0].split() for e in read("mask")]
    pairs = [(m, w) for words, wanted in zip(masked, whole, strict=True) for m, w in zip(words, wanted, strict=True)]
    assert all(m in ("<mask>", w) for m, w in pairs)
    assert 0.3 < sum(m == "<mask>" for m, _ in pairs) / len(pairs) < 0.6


def offered(source: str) -> dict[str, str]:
    """The choices of a source text by label."""
    found = re.findall(r"\b([a-z]\d)[:)]? +(.+?)[ .,]*(?=\b[a-z]\d|label|words|$)", source.split(" ? ", 1)[1])
    return dict(found)


def test_a_label_stands_before_its_choice(read: Any) -> None:
    lookups = [e for e in read("lookup", "video") if " ? " in e.source and re.fullmatch(r"[a-z]\d", e.targets[0])]
    assert len(lookups) > 100
    for example in lookups:
        wanted = example.source.split(" ? ")[0].removeprefix("find ")
        assert offered(example.source)[example.targets[0]].rstrip(".") == wanted.rstrip(".")


def role_said(source: str, name: str) -> str:
    """Which role the subtitles give a name, however they put it."""
    forms = (
        rf"\b{name} is the (\w+)",
        rf"the (\w+) is called {name}\b",
        rf"\b{name} (?:plays the|: my role is the) (\w+)",
    )
    return next(found[1] for form in forms if (found := re.search(form, source)))


@pytest.mark.parametrize("kind", ["image", "video"])
@pytest.mark.parametrize("step", ["tell", "seen", "match", "named", "choose"])
def test_an_exercise_asks_for_a_trait_of_one_object_and_answers_with_it(
    read: Any, root: Path, kind: str, step: str
) -> None:
    things = {
        r["id"]: r["things"] for r in map(json.loads, (root / "pretrain/captions.jsonl").read_text().splitlines())
    }
    values = {"color": COLORS, "shape": SHAPES, "place": PLACES, "way": WAYS}
    examples = read(step, kind)
    assert len(examples) > 50
    for example in examples:
        head = re.sub(r"^said : .* \. ", "", example.source).split(" ?")[0]
        choices = offered(example.source) if step in ("seen", "match", "choose") else {}
        answer = choices.get(example.targets[0], example.targets[0])
        task, who = re.fullmatch(r"(?:(describe|\w+ of) )?(.+)", head).groups()  # type: ignore[union-attr]
        visible = things[example.visuals[0]]
        if step == "seen":
            assert [c for c in choices.values() if c in [t["color"] for t in visible]] == [answer]
            continue
        shown = who if "said :" not in example.source else role_said(example.source, who)
        (thing,) = [t for t in visible if shown in (t["color"], t["shape"], t["place"], t.get("way"))]
        if task == "describe":
            assert all(value in answer for value in thing.values())
        else:
            offered_kinds = [k for k, known in values.items() if set(choices.values()) <= set(known)]
            (asked,) = [task.removesuffix(" of")] if task else offered_kinds
            assert answer == thing[asked] and asked in offered_kinds


def test_pairs_show_two_images_and_ask_of_one(read: Any) -> None:
    about = {e.visuals[0]: e for e in read("question")}
    for example in read("pair"):
        assert len(set(example.visuals)) == 2
        side = 0 if example.source.startswith("left picture") else 1
        assert example.visuals[side] in about and example.id.startswith(example.visuals[side])
