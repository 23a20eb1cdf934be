"""The embedded corpus: formats, truth of its answers, balance, disjoint splits, determinism."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from datamodules.demo import coco, gqa, how2qa, nlvr2, pretrain, tv, tvc, tvqa, vqa, yc2c
from datamodules.demo.corpus import Part, write_corpus
from datamodules.demo.facts import NUMBERS, all_beside, beside, having
from datamodules.demo.speech import WAYS
from datamodules.demo.video import ACTION, FRAMES, SHOT, Clip, render_clip, sample_clip
from datamodules.demo.world import Scene, Thing, generator, render_scene, sample_scene, split_of
from vl_peft.errors import DataError

SCALE = 0.012
PARTS: tuple[Part, ...] = ("image", "video", "pretrain")
Asked = tuple[str, str]  # question, answer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("demo")
    write_corpus(folder, PARTS, scale=SCALE, processes=1)
    return folder


def read_json(path: Path) -> Any:
    return json.loads(path.read_text())


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files(folder: Path) -> list[Path]:
    return sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())


# --- writing ----------------------------------------------------------------------------------------------------------


def test_two_processes_write_the_same_bytes(root: Path, tmp_path: Path) -> None:
    write_corpus(tmp_path, ("video", "image"), scale=SCALE, processes=2)
    written = files(tmp_path)
    pretraining = {p for p in files(root) if p.parts[0] == "pretrain" or p.name == "demo_pretrain.json"}
    assert set(written) == set(files(root)) - pretraining
    for path in written:
        assert (tmp_path / path).read_bytes() == (root / path).read_bytes(), path


def test_nothing_unfinished_is_left(root: Path) -> None:
    assert not [p for p in files(root) if p.name.endswith(".part")]
    manifest = read_json(root / "demo_image.json")
    assert manifest["seed"] == 0 and manifest["scale"] == SCALE
    assert manifest["counts"]["NLVR2 images"] == len(list((root / "nlvr" / "images").rglob("*.png")))


def test_a_written_part_is_left_alone(root: Path) -> None:
    before = (root / "COCO" / "dataset_coco.json").stat().st_mtime_ns
    write_corpus(root, PARTS, scale=SCALE, processes=1)
    assert (root / "COCO" / "dataset_coco.json").stat().st_mtime_ns == before


def test_other_settings_and_foreign_data_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="seed 0, but 1 is asked for"):
        write_corpus(root, ["image"], seed=1, scale=SCALE)
    (tmp_path / "vqa").mkdir()
    with pytest.raises(DataError, match="not of the demo corpus"):
        write_corpus(tmp_path, ["image"], scale=SCALE)


def test_an_interrupted_part_is_written_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(yc2c, "write_annotations", fail)
        write_corpus(tmp_path, ["video"], scale=0, processes=1)
    assert not (tmp_path / "demo_video.json").exists()
    write_corpus(tmp_path, ["video"], scale=0, processes=1)
    assert (tmp_path / "video" / "ann" / "yc2_subtitles.jsonl").exists()


# --- images and videos ------------------------------------------------------------------------------------------------


def test_image_files_show_their_scenes(root: Path) -> None:
    drawn = render_scene(coco.coco_scene(0, "val", 3)).astype(int)
    read = np.asarray(Image.open(root / "COCO" / "images" / "val2014" / coco.file_name("val", 3))).astype(int)
    assert read.shape == (112, 112, 3) and np.abs(read - drawn).mean() < 4
    png = np.asarray(Image.open(root / "nlvr" / "images" / "train" / "2" / "train-2-1-img0.png"))
    assert (png == render_scene(nlvr2.nlvr_set(0, "train", 2)[0][1][0])).all()


def test_videos_are_read_by_decord(root: Path) -> None:
    decord = pytest.importorskip("decord")
    name, clip = yc2c.yc2_clip(0, "train", 1)
    video = decord.VideoReader(str(root / "video" / "videos" / "yc2" / f"{name}.mp4"))
    frames = video.get_batch(range(len(video))).asnumpy()
    assert frames.shape == (FRAMES, 112, 112, 3) and video.get_avg_fps() == 4
    assert np.abs(frames.astype(int) - render_clip(clip)).mean() < 4


def test_only_the_mover_moves_and_it_stays_in_the_picture() -> None:
    for index in range(60):
        clip = sample_clip(generator(0, "test", index), "train")
        start, stop = render_clip(clip)[[ACTION, -1]].astype(int)
        changed = np.abs(start - stop).sum(axis=2) > 30
        for thing in clip.still:
            window = changed[thing.y - 3 : thing.y + 4, thing.x - 3 : thing.x + 4]
            assert window.any() == (thing is clip.changed and thing.shape != "ring") or thing.shape == "ring"
        dx, dy = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}[clip.direction]
        x, y = clip.mover.x + dx * clip.travel, clip.mover.y + dy * clip.travel
        assert clip.travel > 30 and min(x, y) >= clip.mover.radius and max(x, y) <= 111 - clip.mover.radius


def test_a_video_first_shows_its_objects_one_by_one() -> None:
    y, x = np.mgrid[:112, :112]
    for index in range(20):
        clip = sample_clip(generator(0, "test", index), "train")
        frames = render_clip(clip).astype(int)
        shots = frames[: 3 * SHOT : SHOT]
        assert (frames[:ACTION] == shots.repeat(SHOT, axis=0)).all()
        for one, two in ((0, 1), (1, 2), (2, 0)):
            differs = np.abs(shots[one] - shots[two]).sum(axis=2) > 30
            near = [np.hypot(x - t.x, y - t.y) < 1.6 * t.radius for t in (clip.things[one], clip.things[two])]
            assert not (differs & ~near[0] & ~near[1]).any()
            assert all((differs & place).any() for place in near)


def test_sampled_scenes_keep_to_their_split() -> None:
    for index in range(30):
        assert split_of(sample_scene(generator(1, "test", index), "val").signature) == "val"
        assert split_of(sample_clip(generator(1, "test", index), "test").signature) == "test"


def test_no_scene_is_in_two_splits() -> None:
    groups = {
        "train": [coco.coco_scene(0, "train", i) for i in range(200)] + [gqa_scene("train", i) for i in range(100)],
        "more": [gqa_scene("val", i) for i in range(100)],
        "val": [coco.coco_scene(0, "val", i) for i in range(100)],
        "test": [coco.coco_scene(0, "test", i) for i in range(100)] + [gqa_scene("testdev", i) for i in range(100)],
        "pretrain": [pretrain.pretrain_scene(0, i) for i in range(1, 33)],
        "pretrain_val": [pretrain.pretrain_scene(0, i) for i in range(0, 330, 33)],
    }
    for split, scenes in groups.items():
        assert {split_of(scene.signature) for scene in scenes} == {split}


def gqa_scene(split: gqa.GQASplit, index: int) -> Scene:
    return gqa.gqa_questions(0, split, index)[0]


# --- formats ----------------------------------------------------------------------------------------------------------


def test_vqa_files(root: Path) -> None:
    vocabulary = read_json(root / "vqa" / "trainval_ans2label.json")
    assert read_json(root / "vqa" / "trainval_label2ans.json") == sorted(vocabulary, key=vocabulary.__getitem__)
    karpathy = {image["cocoid"]: image for image in read_json(root / "COCO" / "dataset_coco.json")["images"]}
    for year in ("train2014", "val2014"):
        questions = read_json(root / "vqa" / f"v2_OpenEnded_mscoco_{year}_questions.json")
        annotations = read_json(root / "vqa" / f"v2_mscoco_{year}_annotations.json")
        assert questions["data_subtype"] == annotations["data_subtype"] == year
        for question, annotation in zip(questions["questions"], annotations["annotations"], strict=True):
            assert question["question_id"] == annotation["question_id"] and len(question) == 3
            assert karpathy[question["image_id"]]["filepath"] == year
            counts = Counter(a["answer"] for a in annotation["answers"])
            assert counts.most_common(1)[0][0] == annotation["multiple_choice_answer"]
            assert [a["answer_id"] for a in annotation["answers"]] == list(range(1, 11))
            assert {a["answer_confidence"] for a in annotation["answers"]} <= {"yes", "maybe", "no"}
            assert annotation["answer_type"] in {"yes/no", "number", "other"} and annotation["question_type"]


def test_coco_file(root: Path) -> None:
    images = read_json(root / "COCO" / "dataset_coco.json")["images"]
    assert Counter(i["split"] for i in images).keys() == {"train", "restval", "val", "test"}
    for image in images:
        assert (root / "COCO" / "images" / image["filepath"] / image["filename"]).exists()
        assert image["sentids"] == [s["sentid"] for s in image["sentences"]] and len(image["sentences"]) == 5
        assert all(s["tokens"] and s["raw"] and s["imgid"] == image["imgid"] for s in image["sentences"])


def test_gqa_files(root: Path) -> None:
    fields = {"semantic", "entailed", "equivalent", "question", "imageId", "isBalanced", "groups", "answer"}
    fields |= {"semanticStr", "annotations", "types", "fullAnswer"}
    for split, folder in (("train", "VG"), ("val", "VG"), ("testdev", "GQA")):
        records = read_json(root / "GQA" / f"{split}_balanced_questions.json")
        assert len(records) == 4 * len({r["imageId"] for r in records.values()})
        for record in records.values():
            assert set(record) == fields and set(record["types"]) == {"detailed", "semantic", "structural"}
            assert (root / folder / "images" / f"{record['imageId']}.jpg").exists()
            assert record["imageId"].startswith("n") == (split == "testdev")


def test_nlvr2_files(root: Path) -> None:
    for split in ("train", "dev", "test1"):
        labels = defaultdict(list)
        for record in read_lines(root / "nlvr" / f"{split}.json"):
            name = record["identifier"].rsplit("-", 1)[0]
            folder = root / "nlvr" / "images" / split / str(record.get("directory", ""))
            assert ("directory" in record) == (split == "train")
            assert all((folder / f"{name}-img{side}.png").exists() for side in (0, 1))
            assert record["validation"] and record["left_url"] and record["synset"] and record["query"]
            parts = record["identifier"].split("-")
            labels[parts[1], parts[3]].append(record["label"])
        assert all(sorted(group) == ["False", "False", "True", "True"] for group in labels.values())


def test_video_files(root: Path) -> None:
    ann, videos = root / "video" / "ann", root / "video" / "videos"
    sources = {"tvqa": "tv", "tvc": "tv", "how2qa": "how2", "yc2c": "yc2"}
    subtitles = {
        source: {r["vid_name"]: r["sub"] for r in read_lines(ann / f"{source}_subtitles.jsonl")}
        for source in sources.values()
    }
    for source, spoken in subtitles.items():
        assert {p.stem for p in (videos / source).iterdir()} == spoken.keys()
        lines = [line for sub in spoken.values() for line in sub]
        assert all(line["text"].startswith(" ") and 0 <= line["start"] < line["end"] <= 12 for line in lines)
    for task, source in sources.items():
        paths = sorted((ann / task).iterdir())
        assert len(paths) == 3
        for path in paths:
            for record in read_lines(path):
                assert record["vid_name"] in subtitles[source]
                hidden = "_test" in path.name
                assert ("answer_idx" in record or "descs" in record) != hidden
                choices = [record[f"a{i}"] for i in range(5) if f"a{i}" in record]
                assert len(set(choices)) == {"tvqa": 5, "how2qa": 4}.get(task, 0)
    assert (ann / "tvqa" / "tvqa_test_public.jsonl").exists()
    assert (ann / "how2qa" / "how2qa_test_public_release.jsonl").exists()


def test_descriptions() -> None:
    record = tvc.tvc_record(0, "val", 1)
    assert len(record["descs"]) == 4 and len(record["ts"]) == 2 and record["duration"] == 12.0
    for index in range(100):
        tv_clip = tv.tv_clip(0, "train", index)
        for desc in tvc.tvc_record(0, "train", index)["descs"]:
            assert len(desc["desc"].split()) <= 15
            mover = tv_clip.clip.mover
            assert mover.name in desc["desc"]
            assert tv_clip.clip.direction in desc["desc"] or desc["desc"].endswith(f"watches the {mover.name}.")
            assert (tv_clip.speaker in desc["desc"]) == (desc["type"] == "vt")
        name, clip = yc2c.yc2_clip(0, "train", index)
        desc = yc2c.yc2c_desc(clip)
        assert len(name.rsplit("_", 1)[0]) == 11
        assert desc.startswith(f"move the {clip.mover.name}") and (" add " in desc) == (clip.change == "appears")


def test_pretraining_files(root: Path) -> None:
    captions = read_lines(root / "pretrain" / "captions.jsonl")
    assert {(c["kind"], c["split"]) for c in captions} == {(k, s) for k in ("image", "video") for s in ("train", "val")}
    for row in captions:
        assert len(row["captions"]) == 3
        folder, suffix = ("images", "jpg") if row["kind"] == "image" else ("videos", "mp4")
        assert (root / "pretrain" / folder / f"{row['id']}.{suffix}").exists()
    questions = read_lines(root / "pretrain" / "questions.jsonl")
    counts = Counter(q["id"] for q in questions)
    assert counts == {c["id"]: 8 if c["kind"] == "image" else 12 for c in captions}
    assert all(q["choices"] is None or q["answer"] in q["choices"] for q in questions)
    said = {name for q in questions for name in tv.NAMES if name in q["subtitles"].split()}
    assert not said, "the names of the TV clips must be new to the pretrained backbone"


# --- truth ------------------------------------------------------------------------------------------------------------


def named(things: Iterable[Thing], phrase: str) -> Thing:
    """The only thing that a phrase such as "red star", "star" or "red object" names."""
    words = set(phrase.split()) - {"object"}
    (thing,) = [t for t in things if words <= {t.color, t.shape}]
    return thing


def image_answer(scene: Scene, question: str) -> str:
    """The true answer to a VQA or GQA question, found again from the words alone."""
    things, text = scene.things, question.rstrip("?")
    sides = {"to the left of": "left", "to the right of": "right", "above": "above", "below": "below"}
    if match := re.fullmatch(r"What color is the (small|large) object (.+) the (\w+)", text):
        found = having(all_beside(things, named(things, match[3]), sides[match[2]]), size=match[1])
        assert len(found) == 1
        return found[0].color
    if match := re.fullmatch(r"What is (.+) the (\w+ \w+)", text):
        (thing,) = all_beside(things, named(things, match[2]), sides[match[1]])
        return thing.shape
    if match := re.fullmatch(r"Is the (\w+) above or below the (\w+)", text):
        return "above" if beside(named(things, match[1]), named(things, match[2]), "above") else "below"
    if match := re.fullmatch(r"Do the (\w+) and the (\w+) have the same size", text):
        return "yes" if named(things, match[1]).size == named(things, match[2]).size else "no"
    if match := re.fullmatch(r"What color is the (\w+)", text):
        return named(things, match[1]).color
    if match := re.fullmatch(r"What shape is the (\w+ object)", text):
        return named(things, match[1]).shape
    if match := re.fullmatch(r"Is there an? (\w+) (\w+) in the picture", text):
        return "yes" if having(things, color=match[1], shape=match[2]) else "no"
    match = re.fullmatch(r"How many (\w+) are there", text)
    assert match, question
    return str(sum(match[1] in ("objects", f"{t.shape}s", f"{t.shape}es") for t in things))


def test_image_answers_are_true() -> None:
    for index in range(150):
        scene = coco.coco_scene(0, "val", index)
        questions, annotations = vqa.vqa_records(0, "val", index)
        for question, annotation in zip(questions, annotations, strict=True):
            assert image_answer(scene, question["question"]) == annotation["multiple_choice_answer"]
        for record in gqa.gqa_records(0, "testdev", index).values():
            assert image_answer(gqa_scene("testdev", index), record["question"]) == record["answer"]


def test_sentences_are_true() -> None:
    for index in range(20):
        pairs, _ = nlvr2.nlvr_set(0, "dev", index)
        for record in nlvr2.nlvr_records(0, "dev", index):
            pair, text = pairs[int(record["identifier"].split("-")[2])], record["sentence"].rstrip(".")
            sides = [s.things for s in pair]
            if match := re.fullmatch(r"There are exactly (\w+) objects in the (left|right) image", text):
                true = NUMBERS[len(sides[match[2] == "right"])] == match[1]
            else:
                match = re.fullmatch(r"(.+) contains? an? (.+)", text)
                assert match, text
                words = set(match[2].split()) - {"object"}
                has = [any(words <= {t.color, t.shape} for t in things) for things in sides]
                true = {
                    "Both images": all(has),
                    "At least one image": any(has),
                    "The left image": has[0],
                    "The right image": has[1],
                }[match[1]]
            assert record["label"] == str(true)


def video_answer(clip: Clip, roles: dict[str, str], question: str) -> str:
    """The true answer to a TVQA or How2QA question."""
    things, text = clip.things, question.rstrip("?")
    verbs = {"move": clip.mover, "add": clip.changed, "remove": clip.changed}
    events = {"Which object moves": clip.mover, "What appears in the video": clip.changed}
    if text in events or text == "What disappears in the video":
        thing = events.get(text, clip.changed)
        assert thing and (thing is clip.mover or text.split()[1] == clip.change)
        return f"The {thing.name}."
    if match := re.fullmatch(r"What color is (?:the (\w+)|the object that we (\w+)|(\w+))", text):
        thing = verbs[match[2]] if match[2] else named(things, match[1] or roles[match[3]])
        assert thing
        return f"{thing.color.capitalize()}."
    if match := re.fullmatch(r"What shape is the (\w+ object)", text):
        return f"{named(things, match[1]).shape.capitalize()}."
    if match := re.fullmatch(r"Which way does (\w+) move", text):
        way = clip.way_of(named(things, roles[match[1]]))
        return WAYS[way] if way else f"{match[1]} does not move."
    if match := re.fullmatch(r"In which direction does the (\w+) go", text):
        return WAYS[clip.way_of(named(things, match[1])) or ""]
    match = re.fullmatch(r"Where is (\w+) at the start", text)
    assert match, question
    return f"{named(things, roles[match[1]]).place.capitalize()}."


def test_video_answers_are_true() -> None:
    for index in range(90):
        clip = tv.tv_clip(0, "val", index)
        lines = " ".join(line["text"] for line in tv.tv_subtitles(0, "val", index)["sub"])
        roles = dict(re.findall(r"(\w+) : (?:Look , )?I am the (\w+) \.", lines))
        assert roles == {clip.speaker: clip.thing.shape}
        for record in tvqa.tvqa_records(0, "val", index):
            assert video_answer(clip.clip, roles, record["q"]) == record[f"a{record['answer_idx']}"]
        for record in how2qa.how2_records(0, "val", index):
            answer = record[f"a{record['answer_idx']}"]
            assert video_answer(how2qa.how2_clip(0, "val", index)[1], {}, record["q"]) == answer


# --- nothing can be guessed -------------------------------------------------------------------------------------------


def vqa_pairs(split: coco.KarpathySplit, count: int) -> list[Asked]:
    records = [vqa.vqa_records(0, split, i) for i in range(count)]
    return [(q["question"], x["multiple_choice_answer"]) for qs, xs in records for q, x in zip(qs, xs, strict=True)]


def gqa_pairs(split: gqa.GQASplit, count: int) -> list[Asked]:
    return [(r["question"], r["answer"]) for i in range(count) for r in gqa.gqa_records(0, split, i).values()]


def nlvr_pairs(split: nlvr2.NLVRSplit, count: int) -> list[Asked]:
    return [(r["sentence"], r["label"]) for i in range(count) for r in nlvr2.nlvr_records(0, split, i)]


def lookup(train: list[Asked], held_out: list[Asked]) -> float:
    """Accuracy of answering each question with its most frequent answer in training."""
    best: dict[str, Counter[str]] = defaultdict(Counter)
    for question, answer in train:
        best[question][answer] += 1
        best[""][answer] += 1
    return float(np.mean([best.get(q, best[""]).most_common(1)[0][0] == answer for q, answer in held_out]))


@pytest.mark.parametrize(
    ("pairs", "train", "held_out", "most"),
    [
        (vqa_pairs, ("train", 850), [("val", 150), ("test", 150)], 0.36),  # a yes/no, a count, two open ones
        (gqa_pairs, ("train", 800), [("testdev", 120), ("val", 120)], 0.32),
        (nlvr_pairs, ("train", 120), [("dev", 20), ("test1", 20)], 0.5),
    ],
    ids=["vqa", "gqa", "nlvr2"],
)
def test_image_questions_alone_do_not_give_the_answer(
    pairs: Callable[[Any, int], list[Asked]], train: tuple[str, int], held_out: list[tuple[str, int]], most: float
) -> None:
    assert lookup(pairs(*train), [pair for split in held_out for pair in pairs(*split)]) <= most


@pytest.mark.parametrize(
    ("records", "choices", "clips"), [(tvqa.tvqa_records, 5, (800, 120)), (how2qa.how2_records, 4, (500, 90))]
)
def test_video_questions_alone_do_not_give_the_answer(
    records: Callable[..., list[dict[str, Any]]], choices: int, clips: tuple[int, int]
) -> None:
    train = [r for i in range(clips[0]) for r in records(0, "train", i)]
    held_out = [r for i in range(clips[1]) for r in records(0, "val", i)]
    assert len(held_out) >= 250
    places = Counter(r["answer_idx"] for r in train)
    assert max(places.values()) / len(train) < 1 / choices + 0.04
    best: dict[str, Counter[str]] = defaultdict(Counter)
    for r in train:
        best[r["q"]][r[f"a{r['answer_idx']}"]] += 1
    guesses = [max(range(choices), key=lambda i, r=r: best[r["q"]][r[f"a{i}"]]) for r in held_out]  # type: ignore[misc]
    assert np.mean([g == r["answer_idx"] for g, r in zip(guesses, held_out, strict=True)]) < 1 / choices + 0.07


def test_what_the_narrator_says_is_not_the_best_guess() -> None:
    told = [r for i in range(500) for r in how2qa.how2_records(0, "train", i) if r["q"].startswith("What shape")]
    said = {
        r["vid_name"]: " ".join(line["text"] for line in r["sub"])
        for r in (how2qa.how2_subtitles(0, "train", i) for i in range(500))
    }
    heard = [r for r in told if any(r[f"a{i}"].lower().rstrip(".") in said[r["vid_name"]] for i in range(4))]
    right = [r[f"a{r['answer_idx']}"].lower().rstrip(".") in said[r["vid_name"]] for r in heard]
    assert len(right) > 100 and np.mean(right) < 0.35
