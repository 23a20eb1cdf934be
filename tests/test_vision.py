"""Training from images and videos themselves: the same as from features of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from datamodules import NLVR2, TVQA, VQAv2
from vl_peft import vision
from vl_peft.backbones import VLBart
from vl_peft.batch import Batch, PictureLayout
from vl_peft.errors import ConfigError, DataError
from vl_peft.features import pool_grid, pool_time
from vl_peft.features.raw import RawStore
from vl_peft.module import VLModule
from vl_peft.parameters import count_parts
from vl_peft.sampling import Draw
from vl_peft.tuning import Adapter
from vl_peft.vision import Vision

Benchmark = type[VQAv2] | type[NLVR2] | type[TVQA]
HALF = 2.0**-10  # features on disk are float16
VISUAL = ("visual_mask", "image_index", "object_index", "boxes")


def both(kind: Benchmark, root: Path, rows: int = 4, **options: Any) -> tuple[Batch, Batch]:
    """The same rows with features and with pictures."""
    batches = []
    for raw in (None, "demo"):
        benchmark = kind(root=str(root), raw=raw, **options)
        batches.append(benchmark.load("train", Draw(benchmark.task.name, tuple(range(rows)))))
    return batches[0], batches[1]


@pytest.fixture(scope="module")
def frozen() -> Vision:
    return Vision("demo", trains=False)


@pytest.mark.parametrize(("kind", "options"), [(VQAv2, {}), (NLVR2, {}), (TVQA, {}), (TVQA, {"mask_padding": False})])
def test_pictures_become_the_batch_that_features_give(
    kind: Benchmark, options: dict[str, Any], demo_root: Path, frozen: Vision, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "CHUNK", 3)
    wanted, raw = both(kind, demo_root, **options)
    assert raw.pictures is not None and raw.pictures.dtype == torch.uint8 and raw.visual.shape[1] == 0
    seen = frozen(raw)
    assert seen.pictures is None and not seen.visual.requires_grad
    torch.testing.assert_close(seen.visual, wanted.visual, rtol=HALF, atol=1e-4)
    for name in VISUAL:
        assert torch.equal(getattr(seen, name), getattr(wanted, name)), name
    assert torch.equal(raw.input_ids, wanted.input_ids)
    assert frozen(wanted) is wanted, "a batch of features has nothing to encode"


def test_without_vision_only_zeros_are_left(demo_root: Path, frozen: Vision) -> None:
    wanted, raw = both(TVQA, demo_root, ablate_visual=True)
    seen = frozen(raw)
    assert not seen.visual.any() and seen.visual.shape == wanted.visual.shape
    assert torch.equal(seen.visual_mask, wanted.visual_mask)


@given(st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=2), min_size=1, max_size=3), st.integers(1, 9))
def test_long_videos_are_pooled_as_on_disk(counts: list[list[int]], tokens: int) -> None:
    lengths = [n for row in counts for n in row]
    frames = torch.randn(sum(lengths), 3)
    layout = PictureLayout(tuple(map(tuple, counts)), "frames", tokens)
    pooled, rows = vision._shorten(frames, layout)
    wanted = [pool_time(video.numpy(), tokens) for video in frames.split(lengths)]
    np.testing.assert_array_equal(pooled, np.concatenate(wanted))
    assert [n for row in rows for n in row] == [len(video) for video in wanted]


@given(st.integers(1, 7), st.integers(1, 7))
def test_grids_are_pooled_as_on_disk(side: int, out: int) -> None:
    grids = torch.randn(2, side * side, 3)
    wanted = np.stack([pool_grid(grid.numpy(), out * out) for grid in grids])
    np.testing.assert_array_equal(vision._pool_grids(grids, out * out), wanted)


def test_a_grid_that_cannot_be_pooled() -> None:
    with pytest.raises(ConfigError, match="49 grid cells cannot be pooled to 35"):
        vision._pool_grids(torch.zeros(1, 49, 2), 35)


def test_bad_files_are_named(tmp_path: Path) -> None:
    image, video = tmp_path / "a.png", tmp_path / "v.mp4"
    image.write_bytes(b"no image")
    video.write_bytes(b"no video")
    images, videos = (
        RawStore(tmp_path, {"a": image}, "demo", "grid"),
        RawStore(tmp_path, {"v": video}, "demo", "frames"),
    )
    with pytest.raises(DataError, match=r"a\.png, record a: the image cannot be decoded"):
        images.read("a")
    with pytest.raises(DataError, match=r"v\.mp4.*cannot be decoded"):
        videos.read("v")
    with pytest.raises(DataError, match="record b: no image or video of this name"):
        images.read("b")
    with pytest.raises(DataError, match="no videos below it"):
        RawStore(tmp_path, {}, "demo", "frames")


# -- training ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def make_module() -> Callable[..., VLModule]:
    """``make_module(benchmark, **options)``: the demo backbone with an adapter, always with the same weights."""

    def make(benchmark: Any, **options: Any) -> VLModule:
        torch.manual_seed(0)
        return VLModule(VLBart(feature_dim=benchmark.feature_dim), Adapter(), benchmark.tasks, **options).eval()

    return make


@pytest.mark.parametrize("kind", [VQAv2, TVQA])
def test_losses_are_those_of_features(kind: Benchmark, demo_root: Path, make_module: Callable[..., VLModule]) -> None:
    wanted, raw = both(kind, demo_root)
    benchmark = kind(root=str(demo_root), raw="demo")
    reference, model = make_module(benchmark), make_module(benchmark, raw="demo", train_vision=True)
    loss = model.loss(raw)
    torch.testing.assert_close(loss, reference.loss(wanted), rtol=2e-3, atol=1e-4)
    examples = benchmark.load("val", Draw(benchmark.task.name, (0, 1, 2)))
    features = kind(root=str(demo_root)).load("val", Draw(benchmark.task.name, (0, 1, 2)))
    assert model.answer(examples) == reference.answer(features)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(model.loss(raw), loss, rtol=0.1, atol=0.1)


def test_gradients_do_not_depend_on_the_chunks(
    demo_root: Path, make_module: Callable[..., VLModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, raw = both(TVQA, demo_root, rows=2)
    gradients = []
    for chunk in (5, 10**6):
        monkeypatch.setattr(vision, "CHUNK", chunk)
        model = make_module(TVQA(root=str(demo_root), raw="demo"), raw="demo", train_vision=True)
        model.loss(raw).backward()
        gradients.append({name: p.grad for name, p in model.vision.named_parameters()})
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-5)


def test_a_trained_encoder_learns_and_keeps_its_statistics(
    demo_root: Path, make_module: Callable[..., VLModule], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "CHUNK", 5)
    _, raw = both(TVQA, demo_root, rows=2)
    model = make_module(TVQA(root=str(demo_root), raw="demo"), raw="demo", train_vision=True)
    model.train()
    assert model.backbone.training and not any(part.training for part in model.vision.modules())
    buffers = {name: x.clone() for name, x in model.vision.named_buffers()}
    model.loss(raw).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.vision.parameters())
    assert all(torch.equal(x, buffers[name]) for name, x in model.vision.named_buffers()) and buffers


def test_what_trains_and_how_fast(demo_root: Path, make_module: Callable[..., VLModule]) -> None:
    benchmark = TVQA(root=str(demo_root), raw="demo")
    still = make_module(benchmark, raw="demo")
    assert not any(p.requires_grad for p in still.vision.parameters())
    model = make_module(benchmark, raw="demo", train_vision=True, lr=1e-3, vision_lr=1e-5, weight_decay=0.1)
    groups = [(g["lr"], g["weight_decay"]) for g in model._parameter_groups()]
    assert groups == [(1e-3, 0.1), (1e-3, 0.0), (1e-5, 0.1), (1e-5, 0.0)]
    matrices = {id(p) for p in model.vision.parameters() if p.ndim >= 2}
    assert {id(p) for p in model._parameter_groups()[2]["params"]} == matrices
    parts = {part.name: part for part in count_parts(model.backbone, model.vision)}
    size = sum(p.numel() for p in model.vision.parameters())
    assert parts["vision encoder"].total == parts["vision encoder"].trainable == size
    assert parts["total"].total == sum(p.numel() for p in model.parameters())
    checkpoint = {"state_dict": dict(model.state_dict())}
    model.on_save_checkpoint(checkpoint)
    saved = {name for name in checkpoint["state_dict"] if name.startswith("vision.")}
    assert saved == {f"vision.{name}" for name, _ in model.vision.named_parameters()}
    with pytest.raises(ConfigError, match="of another configuration"):
        still.on_load_checkpoint(checkpoint)
    with pytest.raises(ConfigError, match=r"data\.raw"):
        make_module(benchmark, train_vision=True)
