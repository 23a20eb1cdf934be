"""The command line on images and videos themselves, where there are no features at all."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from vl_peft.cli import main
from vl_peft.features.raw import preparation

EXPERIMENTS = Path(__file__).parents[1] / "experiments"
SHORT = ("--trainer.max_epochs=1", "--data.steps_per_epoch=4")
FEW = ("--trainer.limit_val_batches=1",)
RAW = ("--data.raw=demo", "--data.num_workers=1")
TASKS = {"image": ("vqa", "gqa", "nlvr", "caption"), "video": ("tvqa", "how2qa", "tvc", "yc2c")}
Command = Callable[..., Path]


@pytest.fixture
def bare_root(demo_root: Path, tmp_path: Path) -> Path:
    """The corpus without features."""
    hidden = shutil.ignore_patterns("clip_features", "vis_features")
    return Path(shutil.copytree(demo_root, tmp_path / "bare", ignore=hidden, copy_function=os.symlink))


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``command(name, kind, root, *options)`` runs with the demo configuration and returns the run's folder."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, kind: str, root: Path, *options: str) -> Path:
        configs = [f"--config={EXPERIMENTS / c}.yaml" for c in ("base", f"{kind}/base", f"{kind}/single_adapter")]
        sizes = ("batch_size=6", "eval_batch_size=8")
        few = [f"--data.benchmarks.{task}.init_args.{size}" for task in TASKS[kind] for size in sizes]
        demo = (*few, "--trainer.accelerator=cpu", "--trainer.num_sanity_val_steps=0", f"--data.root={root}")
        config = f"--config={EXPERIMENTS / 'demo' / kind}.yaml"
        assert main([name, *configs, config, *demo, *SHORT, *options]) == 0
        return max(tmp_path.glob("runs/experiment/version_*"), key=lambda p: int(p.name.split("_")[1]))

    return run


def weights(run: Path, checkpoint: str = "last") -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = torch.load(run / f"checkpoints/{checkpoint}.ckpt", weights_only=True)["state_dict"]
    return state


def answers(run: Path) -> dict[tuple[str, str], str]:
    """Answers of a run's validation by file and id."""
    lines = [(file.name, json.loads(line)) for file in run.glob("predictions/*") for line in file.open()]
    return {(name, line["id"]): line["prediction"] for name, line in lines}


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_frozen_encoder_trains_as_its_features_do(
    kind: str, command: Command, demo_root: Path, bare_root: Path, tmp_path: Path
) -> None:
    exact = ("--model.eps=1e-3",)  # or Adam would blow rounding up to whole steps where gradients are all but 0
    preparation.cache_clear()  # loading an encoder, which draws its weights first, must not change those of the model
    features = command("fit", kind, demo_root, *exact, "--trainer.limit_val_batches=0")
    raw = command("fit", kind, bare_root, *RAW, *exact, *FEW)
    wanted, got = weights(features), weights(raw)
    assert wanted.keys() == got.keys(), "a frozen encoder is not part of the checkpoint"
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            got[name], tensor, rtol=1e-2, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
    again = command("validate", kind, bare_root, *RAW, *FEW, f"--ckpt_path={raw}/checkpoints/last.ckpt")
    other = command("validate", kind, demo_root, *FEW, f"--ckpt_path={raw}/checkpoints/last.ckpt")
    assert answers(again) == answers(raw)
    same = [answers(other)[key] == answer for key, answer in answers(raw).items()]
    assert len(same) == 32 and sum(same) >= 30, "features and pictures give the same answers but for ties"
    assert main(["adapters", "export", str(raw), str(tmp_path / "out")]) == 0


@pytest.mark.parametrize("trains", ["false", "true"])
def test_all_in_bfloat16(trains: str, command: Command, bare_root: Path) -> None:
    """Pixels are float32; the encoder and the backbone are not."""
    half = (*RAW, *FEW, "--trainer.precision=bf16-true", f"--model.train_vision={trains}")
    run = command("fit", "image", bare_root, *half)
    assert {tensor.dtype for tensor in weights(run).values()} == {torch.bfloat16}
    assert len(answers(run)) == 32


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_trained_encoder_is_saved_and_resumed(
    kind: str, command: Command, bare_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = (*RAW, "--model.train_vision=true", "--model.vision_lr=1e-3", "--trainer.precision=bf16-mixed")
    save = ("--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint", "--trainer.callbacks.save_top_k=-1")
    steps = ("--trainer.callbacks.every_n_train_steps=2", "--trainer.callbacks.filename={step}")
    train = (*train, "--trainer.limit_val_batches=0", "--data.steps_per_epoch=3")
    run = command("fit", kind, bare_root, *train, *save, *steps)
    state, middle = weights(run), weights(run, "step=2")
    vision = {name for name in state if name.startswith("vision.")}
    assert vision and any(not torch.equal(state[name], middle[name]) for name in vision)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["data"]["init_args"]["raw"] == "demo" and config["model"]["train_vision"] is True
    resumed = command("fit", kind, bare_root, *train, f"--ckpt_path={run}/checkpoints/step=2.ckpt")
    for name, tensor in weights(resumed).items():
        assert torch.equal(tensor, state[name]), name
    capsys.readouterr()
    assert main(["adapters", "export", str(run), str(tmp_path / "out")]) == 2
    assert "trained vision encoder" in " ".join(capsys.readouterr().err.split())


def test_parameters_are_counted(command: Command, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    configs = [f"--config={EXPERIMENTS / c}.yaml" for c in ("base", "video/base", "video/single_adapter")]
    assert main(["params", *configs, "--data.raw=demo", "--model.train_vision=true", "--json"]) == 0
    parts = json.loads(capsys.readouterr().out)
    assert parts["vision encoder"]["trainable"] == parts["vision encoder"]["total"] > 0


def test_a_missing_and_a_broken_video(
    command: Command, bare_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = [f"--config={EXPERIMENTS / c}.yaml" for c in ("base", "video/base", "video/single_adapter", "demo/video")]
    arguments = ["fit", *config, f"--data.root={bare_root}", "--trainer.accelerator=cpu", *SHORT, *RAW]
    videos = sorted((bare_root / "video/videos/tv").iterdir())
    videos[0].unlink()
    assert main(arguments) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"({videos[0].stem})" in message and "no files for 1 keys" in message and "Put them there" in message
    for video in videos[1:]:
        video.unlink()
        video.write_bytes(b"no video")
    assert main([*arguments, "--data.missing_features=skip"]) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert "video/videos/tv/" in message and "cannot be decoded" in message
