"""What all benchmarks share: features, prompts, loading, and MultiTask."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from datamodules import NLVR2, TVC, TVQA, YC2C, MultiTask
from vl_peft.batch import Generation
from vl_peft.errors import ConfigError, DataError
from vl_peft.features.packed import PackedStore, pack
from vl_peft.sampling import Draw

F = 8


@pytest.fixture
def tvqa(data: Any) -> Any:
    """Three training questions about two videos, one validation question, and the videos' features."""
    record = {f"a{i}": f"choice {i}" for i in range(5)} | {"q": "Why?", "show_name": "Castle", "ts": "1-2"}
    rows = [record | {"qid": i, "vid_name": f"v{i % 2}", "answer_idx": 3 if i else 1} for i in range(4)]
    data.lines("video/ann/tvqa/tvqa_train.jsonl", rows)
    data.lines("video/ann/tvqa/tvqa_val.jsonl", rows[:1])
    data.subtitles("tv", v0=["hello"], v1=["there"])
    for i, name in enumerate(("v0", "v1")):
        folder = data.path / "video/vis_features/tv/clip"
        folder.mkdir(parents=True, exist_ok=True)
        np.savez(folder / f"{name}.npz", features=np.full((70 if i else 5, F), i + 1, dtype=np.float16))
    return data


def options(data: Any, tokenizer: Path, **more: Any) -> dict[str, Any]:
    return {"root": str(data.path), "tokenizer": str(tokenizer), **more}


def test_a_batch_from_files(tvqa: Any, tokenizer_folder: Path) -> None:
    benchmark = TVQA(**options(tvqa, tokenizer_folder))
    batch = benchmark.load("train", Draw("tvqa", (0, 1), 0))
    assert batch.ids == ["0", "1"] and batch.task == "tvqa"
    assert batch.visual.shape == (2, 64, F), "70 rows are pooled to 64, 5 rows are padded"
    assert batch.visual_mask.sum(1).tolist() == [5, 64]
    assert batch.visual[0, :5].eq(1).all() and batch.visual[0, 5:].eq(0).all() and batch.visual[1].eq(2).all()
    assert benchmark.examples("train")[0].source.startswith("tvqa: [Subs] hello"), "prompts stand in front by default"
    assert batch.labels is not None and not batch.examples
    evaluated = benchmark.load("val", Draw("tvqa", (0,)))
    assert evaluated.labels is None and evaluated.examples[0].references == ("a1",)


def test_zero_frames_are_attended_to_where_asked(tvqa: Any, tokenizer_folder: Path) -> None:
    batch = TVQA(**options(tvqa, tokenizer_folder, mask_padding=False)).load("train", Draw("tvqa", (0,), 0))
    assert batch.visual.shape == (1, 64, F) and batch.visual_mask.all()
    assert batch.object_index[0].tolist() == list(range(64))


def test_ablated_features_are_zero_and_nothing_else_changes(tvqa: Any, tokenizer_folder: Path) -> None:
    draw = Draw("tvqa", (0, 1), 0)
    whole = TVQA(**options(tvqa, tokenizer_folder)).load("train", draw)
    ablated = TVQA(**options(tvqa, tokenizer_folder, ablate_visual=True)).load("train", draw)
    assert not ablated.visual.any() and whole.visual.any()
    for name in ("input_ids", "labels", "visual_mask", "object_index"):
        assert torch.equal(getattr(whole, name), getattr(ablated, name))


def test_commonest_target(tvqa: Any, tokenizer_folder: Path) -> None:
    assert TVQA(**options(tvqa, tokenizer_folder)).commonest_target() == "a3"


def test_limits_and_generation_can_be_set(tvqa: Any, tokenizer_folder: Path) -> None:
    benchmark = TVQA(**options(tvqa, tokenizer_folder, max_source=9, generation=Generation(num_beams=3)))
    assert benchmark.task.generation.num_beams == 3 and TVQA.task.generation.num_beams == 1
    assert benchmark.load("train", Draw("tvqa", (0,), 0)).input_ids.shape == (1, 9)


def test_missing_features_fail_or_are_skipped_and_counted(
    tvqa: Any, tokenizer_folder: Path, reports: list[str]
) -> None:
    (tvqa.path / "video/vis_features/tv/clip/v1.npz").unlink()
    with pytest.raises(DataError, match=r"no features for 1 keys of 2 tvqa train examples \(v1\)"):
        TVQA(**options(tvqa, tokenizer_folder)).examples("train")
    benchmark = TVQA(**options(tvqa, tokenizer_folder, missing_features="skip"))
    assert [e.id for e in benchmark.examples("train")] == ["0", "2"]
    assert len(reports) == 1 and "skipped" in reports[0] and "2 tvqa train examples" in reports[0]


def test_the_only_encoder_is_found_and_of_two_one_must_be_named(tvqa: Any, tokenizer_folder: Path) -> None:
    assert TVQA(**options(tvqa, tokenizer_folder)).feature_dim == F
    other = tvqa.path / "video/vis_features/tv/resnet"
    other.mkdir()
    np.savez(other / "v0.npz", features=np.ones((5, 3), dtype=np.float16))
    with pytest.raises(ConfigError, match=r"clip, resnet.*--data.encoder"):
        _ = TVQA(**options(tvqa, tokenizer_folder)).feature_dim
    assert TVQA(**options(tvqa, tokenizer_folder, encoder="resnet")).feature_dim == 3


def test_multitask_refuses_what_cannot_be_meant(tvqa: Any, tokenizer_folder: Path) -> None:
    with pytest.raises(ConfigError, match="empty"):
        MultiTask({})
    with pytest.raises(ConfigError, match="is the task 'tvqa'"):
        MultiTask({"tvc": TVQA()})
    with pytest.raises(ConfigError, match=r"data\.benchmarks\.tvqa sets an argument that all share"):
        MultiTask({"tvqa": TVQA(seed=1)})


def test_multitask_shares_its_settings(tvqa: Any, tokenizer_folder: Path) -> None:
    multitask = MultiTask({"tvqa": TVQA(batch_size=2)}, **options(tvqa, tokenizer_folder, temperature=3.0, seed=5))
    multitask.setup("fit")
    schedule = multitask.schedule(world=2)
    assert schedule.sizes == {"tvqa": 4} and schedule.batch_sizes == {"tvqa": 4}
    assert schedule.temperature == 3.0 and schedule.seed == 5
    assert multitask.benchmarks["tvqa"].loading is multitask.loading


def test_a_benchmark_alone_is_a_datamodule(tvqa: Any, tokenizer_folder: Path) -> None:
    benchmark = TVQA(batch_size=2, **options(tvqa, tokenizer_folder))
    benchmark.setup("fit")
    assert sorted(i for batch in benchmark.train_dataloader() for i in batch.ids) == ["0", "1", "2", "3"]
    assert [len(loader) for loader in benchmark.val_dataloader()] == [1]


@pytest.mark.parametrize("benchmark", [NLVR2, TVC, YC2C])
def test_a_data_root_that_is_not_there(benchmark: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"vl-peft data demo"):
        benchmark(root=str(tmp_path / "nowhere")).examples("train")


def test_a_packed_file_beside_the_folder_is_used(demo_root: Path, tmp_path: Path) -> None:
    """It gives the same batches, with or without the folder, and the encoder is found by its name."""
    shutil.copytree(demo_root / "video", tmp_path / "video")
    wanted = TVQA(root=str(tmp_path)).load("val", Draw("tvqa", (0, 1)))
    (folder,) = (tmp_path / "video/vis_features/tv").iterdir()
    pack(folder, folder.with_name(f"{folder.name}.packed.h5"))
    for encoder in (None, folder.name):
        packed = TVQA(root=str(tmp_path), encoder=encoder)
        assert isinstance(packed.store("val"), PackedStore)
        assert torch.equal(packed.load("val", Draw("tvqa", (0, 1))).visual, wanted.visual)
        shutil.rmtree(folder, ignore_errors=True)


def test_image_regions_bring_their_boxes(data: Any, tokenizer_folder: Path) -> None:
    """The first 36 of each image of a pair, not pooled; without vision they are zeros like their features."""
    fields = {"sentence": "w5", "label": "True", "identifier": "train-1-0-0"}
    data.lines("nlvr/train.json", [fields])
    boxes = np.arange(160, dtype=np.float32).reshape(40, 4)
    (data.path / "nlvr/features").mkdir()
    with h5py.File(data.path / "nlvr/features/train_obj36.h5", "w") as h5:
        for i, count in enumerate((40, 2)):
            key = f"train-1-0-img{i}"
            h5[f"{key}/features"] = np.full((count, F), i + 1, np.float32)
            h5[f"{key}/boxes"], h5[f"{key}/img_w"], h5[f"{key}/img_h"] = boxes[:count], 200, 200
    benchmark = NLVR2(**options(data, tokenizer_folder))
    batch = benchmark.load("train", Draw("nlvr", (0,)))
    assert benchmark.feature_dim == F
    assert batch.visual.shape == (1, 38, F) and batch.boxes.shape == (1, 38, 4)
    assert batch.visual[0, :, 0].tolist() == [1] * 36 + [2] * 2
    np.testing.assert_allclose(batch.boxes[0], np.concatenate([boxes[:36], boxes[:2]]) / 200, rtol=1e-6)
    ablated = NLVR2(**options(data, tokenizer_folder, ablate_visual=True)).load("train", Draw("nlvr", (0,)))
    assert not ablated.visual.any() and not ablated.boxes.any()
    assert torch.equal(ablated.visual_mask, batch.visual_mask)


@pytest.mark.parametrize("loader_first", [False, True])
def test_training_goes_on_where_a_checkpoint_says(tvqa: Any, tokenizer_folder: Path, loader_first: bool) -> None:
    """Also where the loader was asked for before the checkpoint was read, as under Sharded."""
    benchmark = TVQA(batch_size=1, **options(tvqa, tokenizer_folder))
    whole = [batch.ids for batch in benchmark.train_dataloader()]
    fresh = TVQA(batch_size=1, **options(tvqa, tokenizer_folder))
    if loader_first:
        loader = fresh.train_dataloader()
    fresh.load_state_dict({"epoch": 0, "yielded": 2})
    if not loader_first:
        loader = fresh.train_dataloader()
    assert len(whole) > 2 and [batch.ids for batch in loader] == whole[2:]


def test_batches_that_too_many_processes_would_share(tvqa: Any, tokenizer_folder: Path) -> None:
    benchmark = TVQA(batch_size=2, batch="global", **options(tvqa, tokenizer_folder))
    assert benchmark.schedule(1).batch_sizes == benchmark.schedule(2).batch_sizes == {"tvqa": 2}
    with pytest.raises(ConfigError, match=r"data.batch global: 3 processes cannot share .* 'tvqa' \(2 of \d examples"):
        benchmark.schedule(3)
