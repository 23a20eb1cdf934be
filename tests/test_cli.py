"""The command line end to end, on the demo corpus at toy size."""

from __future__ import annotations

import json
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import h5py
import pytest
import torch
import yaml
from safetensors.torch import load_file

from vl_peft.batch import Batch
from vl_peft.cli import main
from vl_peft.module import VLModule

REPOSITORY = Path(__file__).parents[1]
EXPERIMENTS = REPOSITORY / "experiments"


@pytest.fixture
def command(demo_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The arguments of a command on a small benchmark mix, run in an empty folder."""
    monkeypatch.chdir(tmp_path)

    def build(name: str, *options: str, kind: str = "video", root: Path = demo_root) -> list[str]:
        configs = ["base", f"{kind}/base", f"{kind}/single_adapter", f"demo/{kind}"]
        return [
            name,
            *(part for c in configs for part in ("--config", str(EXPERIMENTS / f"{c}.yaml"))),
            "--data.root",
            str(root),
            "--trainer.accelerator=cpu",
            "--trainer.devices=1",
            *options,
        ]

    return build


QUICK = ("--trainer.max_epochs=1", "--data.steps_per_epoch=8", "--trainer.limit_val_batches=1")


def latest(folder: Path) -> Path:
    return max(folder.glob("runs/experiment/version_*"), key=lambda p: int(p.name.split("_")[1]))


@pytest.mark.parametrize("kind", ["image", "video"])
def test_fit_then_validate_and_predict(kind: str, command: Callable[..., list[str]], tmp_path: Path) -> None:
    assert main(command("fit", *QUICK, kind=kind)) == 0
    run = latest(tmp_path)
    results = json.loads((run / "results.json").read_text())
    config = yaml.safe_load((run / "config.yaml").read_text())
    tasks = set(config["data"]["init_args"]["benchmarks"])
    assert set(results["scores"]) == tasks
    assert all(results["scores"][t][results["headline"][t]] >= 0 for t in tasks)
    assert all(results["baseline"][t]["answer"] for t in tasks)
    for task in tasks:
        lines = (run / f"predictions/val_{task}.jsonl").read_text().splitlines()
        assert len(lines) == results["counts"][task]
        assert {"id", "prediction", "references"} == set(json.loads(lines[0]))
    assert not list(run.rglob("*.tmp"))

    checkpoint = run / "checkpoints/last.ckpt"
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    trained = results["parameters"]["total"]["trainable"]
    assert sum(t.numel() for t in state.values()) == trained < results["parameters"]["total"]["total"] / 2

    assert main(command("validate", "--trainer.limit_val_batches=1", f"--ckpt_path={checkpoint}", kind=kind)) == 0
    again = json.loads((latest(tmp_path) / "results.json").read_text())
    same = {t: {name: again["scores"][t][name] for name in scores} for t, scores in results["scores"].items()}
    assert same == results["scores"], "a loaded checkpoint must give the scores of the run that wrote it"
    for task in tasks & {"caption", "tvc", "yc2c"}:  # slow scores come outside of training, or a note in their place
        assert "METEOR" not in results["scores"][task]
        assert "METEOR" in again["scores"][task] or "METEOR was left out" in again["notes"][task][0]

    assert main(command("predict", "--trainer.limit_predict_batches=1", f"--ckpt_path={checkpoint}", kind=kind)) == 0
    assert {p.name for p in (latest(tmp_path) / "predictions").iterdir()} == {f"test_{t}.jsonl" for t in tasks}


def test_test_without_labels_gives_predictions_and_says_so(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("test", "--trainer.limit_test_batches=1")) == 0
    assert "no labels" in capsys.readouterr().out
    assert (latest(tmp_path) / "predictions/test_tvqa.jsonl").stat().st_size > 0


def test_resumed_run_ends_as_an_undisturbed_one(command: Callable[..., list[str]], tmp_path: Path) -> None:
    """Also with workers, in the middle of an epoch, and with dropout seeds and answer draws that depend on the step."""
    options = ("--data.steps_per_epoch=6", "--trainer.limit_val_batches=0", "--trainer.max_epochs=2")
    plain = command("fit", *options, kind="image")
    assert main(plain) == 0
    whole = torch.load(latest(tmp_path) / "checkpoints/last.ckpt", weights_only=True)
    # The learning rate schedule knows the length of the whole run, so the first part is stopped, not made shorter.
    save = "--trainer.callbacks+=lightning.pytorch.callbacks.ModelCheckpoint"
    stop = [*plain, save, "--trainer.callbacks.every_n_train_steps=4", "--trainer.callbacks.save_top_k=-1"]
    assert main([*stop, "--trainer.callbacks.filename={step}"]) == 0
    middle = latest(tmp_path) / "checkpoints/step=4.ckpt"
    for workers in ("0", "2"):
        assert main([*plain, f"--ckpt_path={middle}", f"--data.num_workers={workers}"]) == 0
        resumed = torch.load(latest(tmp_path) / "checkpoints/last.ckpt", weights_only=True)
        assert resumed["global_step"] == whole["global_step"] == 12
        for name, tensor in whole["state_dict"].items():
            assert torch.equal(tensor, resumed["state_dict"][name]), name


def test_a_run_that_breaks_leaves_the_checkpoint_of_its_last_epoch(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = VLModule.training_step

    def breaks(self: VLModule, batch: Batch, batch_idx: int) -> torch.Tensor:
        if self.current_epoch == 1:
            raise RuntimeError("power cut")
        return whole(self, batch, batch_idx)

    monkeypatch.setattr(VLModule, "training_step", breaks)
    options = ("--trainer.max_epochs=2", "--data.steps_per_epoch=2", "--trainer.limit_val_batches=1")
    with pytest.raises(RuntimeError, match="power cut"):
        main(command("fit", *options))
    (checkpoint,) = (latest(tmp_path) / "checkpoints").iterdir()
    assert checkpoint.name == "last.ckpt" and torch.load(checkpoint, weights_only=True)["global_step"] == 2


def test_plan(command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(command("plan")[:-2]) == 0
    out = capsys.readouterr().out
    assert "tvqa" in out and "on N processes" in out


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("fit", "validate", "test", "predict", "plan", "data demo", "data extract"))


def test_plan_of_batches_that_processes_share(
    command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("plan", "--data.batch=global")) == 0
    assert "the same steps on any number of processes" in " ".join(capsys.readouterr().out.split())


# -- mistakes of the user: one message that names file and record, no traceback ------------------------------------


@pytest.fixture
def own_root(demo_root: Path, tmp_path: Path) -> Path:
    """A copy of the video part that a test may damage."""
    root = tmp_path / "own"
    shutil.copytree(demo_root / "video", root / "video", ignore=shutil.ignore_patterns("videos"))
    return root


def failure(args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command that fails for the user's mistake prints on stderr."""
    assert main(args) == 2
    message = capsys.readouterr().err
    assert "Traceback" not in message
    return " ".join(message.split())


def test_missing_data_folder(command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(command("fit", root=Path("nowhere")), capsys)
    assert "nowhere/video" in message and "vl-peft data demo" in message


def test_missing_feature_file(
    command: Callable[..., list[str]], own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = sorted((own_root / "video/vis_features/tv/demo").iterdir())[0]
    gone.unlink()
    message = failure(command("fit", root=own_root), capsys)
    assert gone.stem in message and "--data.missing_features skip" in message


def test_missing_features_can_be_skipped_and_are_counted(
    command: Callable[..., list[str]], own_root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sorted((own_root / "video/vis_features/tv/demo").iterdir())[0].unlink()
    assert main(command("fit", "--data.missing_features=skip", *QUICK, root=own_root)) == 0


def test_truncated_feature_file(
    command: Callable[..., list[str]], own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (own_root / "video/vis_features/tv/demo").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    message = failure(command("fit", *QUICK, root=own_root), capsys)
    assert "video/vis_features/tv/demo/" in message and ".npz" in message


@pytest.mark.parametrize("workers", [0, 1])
def test_truncated_and_keyless_hdf5(
    workers: int, demo_root: Path, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "own"
    shutil.copytree(demo_root, root, ignore=shutil.ignore_patterns("video", "images"))
    files = sorted((root / "nlvr/clip_features/data_clip_demo_att").iterdir())
    for file in files[:-1]:
        file.write_bytes(file.read_bytes()[:500])
    with h5py.File(files[-1], "w") as other:
        other["something_else"] = 1
    message = failure(command("fit", *QUICK, f"--data.num_workers={workers}", kind="image", root=root), capsys)
    assert "nlvr/clip_features/data_clip_demo_att/" in message and ".h5" in message


def test_malformed_annotation_line(
    command: Callable[..., list[str]], own_root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = own_root / "video/ann/tvqa/tvqa_train.jsonl"
    lines = file.read_text().splitlines()
    lines[2] = lines[2][:40]
    file.write_text("\n".join(lines))
    message = failure(command("fit", root=own_root), capsys)
    assert "tvqa_train.jsonl" in message and "line 3" in message


def test_empty_split(command: Callable[..., list[str]], own_root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (own_root / "video/ann/tvc/tvc_val_release.jsonl").write_text("")
    assert "the val split of tvc is empty" in failure(command("fit", root=own_root), capsys)


def test_unknown_task(command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(command("fit", "--data.benchmarks.tvqa=datamodules.TVQQA"))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert "TVQQA" in message and "Traceback" not in message and len(message) < 4000


def test_wrong_key_for_a_benchmark(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "wrong.yaml"
    benchmarks = {"vqa": {"class_path": "datamodules.TVQA"}}
    data = {"class_path": "datamodules.MultiTask", "init_args": {"benchmarks": benchmarks}}
    config.write_text(yaml.safe_dump({"data": data}))
    assert "data.benchmarks.vqa is the task 'tvqa'" in failure(command("fit", "--config", str(config)), capsys)


def test_backbone_that_is_not_there(command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    message = failure(command("fit", "--model.backbone.pretrained=/no/such/folder"), capsys)
    assert "/no/such/folder" in message


def test_checkpoint_of_another_strategy(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("fit", *QUICK)) == 0
    checkpoint = latest(tmp_path) / "checkpoints/last.ckpt"
    options = ("--model.tuning.sharing=multiple", f"--ckpt_path={checkpoint}")
    assert "another configuration" in failure(command("validate", *options), capsys)


def test_checkpoint_that_is_not_there(command: Callable[..., list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    assert "no/such.ckpt" in failure(command("validate", "--ckpt_path=no/such.ckpt"), capsys)


def test_extract_own_files(demo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Features of one's own images are those that the corpus has of the same files; unreadable ones are named."""
    source = tmp_path / "pictures"
    shutil.copytree(demo_root / "GQA/images", source)
    arguments = ["data", "extract", str(source), str(tmp_path / "out"), "--kind", "images", "--workers", "0"]
    assert main(arguments) == 0
    for file in (demo_root / "GQA/clip_features/data_clip_demo_att").iterdir():
        with h5py.File(file) as theirs, h5py.File(tmp_path / "out" / file.name) as ours:
            key = f"{file.stem}/features"
            assert ours[key].shape == (49, 128) and abs(ours[key][:] - theirs[key][:]).max() < 1e-2
    (source / "broken.png").write_bytes(b"not a picture")
    assert "broken" in failure(arguments, capsys)


def test_unknown_encoder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["data", "extract", str(tmp_path), str(tmp_path / "out"), "--kind", "images", "--encoder", "RN999"]
    assert "RN999" in failure(arguments, capsys)


# -- tuning strategies -------------------------------------------------------------------------------------------------


def test_a_strategy_from_outside_trains_and_is_exported(
    command: Callable[..., list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make_batch: Callable[..., Batch]
) -> None:
    """The one in docs/new_strategy.md: at most 40 lines."""
    (code,) = re.findall(r"```python\n(.*?)```", (REPOSITORY / "docs/new_strategy.md").read_text(), re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 40
    (tmp_path / "scaling.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    tuning = {"class_path": "scaling.Scaling", "init_args": {"sharing": "multiple"}}
    (tmp_path / "scaling.yaml").write_text(yaml.safe_dump({"model": {"tuning": tuning, "lr": 1e-3}}))
    options = ("--config", str(tmp_path / "scaling.yaml"))
    assert main(command("fit", *QUICK, *options)) == 0
    run = latest(tmp_path)
    assert main(["adapters", "export", str(run), str(tmp_path / "out")]) == 0
    tensors = load_file(tmp_path / "out/adapter_model.safetensors")
    scales = {name: t for name, t in tensors.items() if ".delta.scale.parts." in name}
    assert {name.split(".")[-2] for name in scales} == {"tvqa", "how2qa", "tvc", "yc2c"}
    assert any((t != 1).any() for t in scales.values())
    begun = ("--model.adapters", str(tmp_path / "out"), "--trainer.limit_val_batches=1")
    assert main(command("validate", *options, *begun)) == 0
    fitted, loaded = (json.loads((r / "results.json").read_text())["scores"] for r in (run, latest(tmp_path)))
    assert fitted == {task: {name: loaded[task][name] for name in fitted[task]} for task in loaded}


def test_adapters_are_inspected_and_get_a_task(
    command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tuning = ("--model.tuning=Adapter", "--model.tuning.sharing=multiple", "--trainer.limit_train_batches=2")
    assert main(command("fit", *QUICK, *tuning)) == 0
    out, more = str(tmp_path / "out"), str(tmp_path / "more")
    assert main(["adapters", "export", str(latest(tmp_path)), out]) == 0
    capsys.readouterr()
    assert main(["adapters", "inspect", out]) == 0
    shown = capsys.readouterr().out
    assert "VLBart with Adapter" in shown and "task how2qa" in shown and "visual embedding" in shown
    assert main(["adapters", "add", out, more, "--task", "msrvtt", "--like", "tvc"]) == 0
    one, other = load_file(f"{out}/adapter_model.safetensors"), load_file(f"{more}/adapter_model.safetensors")
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())
    new = {name.replace(".msrvtt.", ".tvc."): t for name, t in other.items() if ".msrvtt." in name}
    assert new and all(torch.equal(t, one[name]) for name, t in new.items())
    assert main(["adapters", "merge", out, str(tmp_path / "merged")]) == 2
    assert "Only LoRA with sharing: single" in capsys.readouterr().err
    assert main(["adapters", "export", str(tmp_path), out]) == 2
    assert "config.yaml: not there. Give the folder of a finished run" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize("kind", ["image", "video"])
def test_a_submission_is_written_and_checked(
    kind: str, command: Callable[..., list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command("test", "--submit", kind=kind)) == 0
    folder = latest(tmp_path) / "submission"
    said = " ".join(capsys.readouterr().out.split())
    if kind == "image":
        files = {"v2_OpenEnded_mscoco_karpathy_test_vl_peft_results.json", "gqa_testdev_balanced_results.json"}
        files |= {"nlvr2_test1.csv", *(f"captions_karpathy_{s}_vl_peft_results.json" for s in ("val", "test"))}
        archive, zipped = "captions_vl_peft_results.zip", sorted(f for f in files if f.startswith("captions"))
    else:
        tests = {"tvqa": "test", "how2qa": "test_public", "tvc": "test", "yc2c": "test"}
        files = {
            f"{task}/{task}_{split}_predictions.{'jsonl' if task in ('tvc', 'yc2c') else 'json'}"
            for task, test in tests.items()
            for split in ("val", test)
        }
        archive, zipped = "value.zip", sorted(files)
    assert {str(f.relative_to(folder)) for f in folder.rglob("*") if f.is_file()} == files | {archive}
    with zipfile.ZipFile(folder / archive) as contents:
        assert sorted(contents.namelist()) == zipped
    assert said.count("all ids there") == len(files)


def test_an_incomplete_submission_is_refused(
    command: Callable[..., list[str]], demo_root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = shutil.copytree(demo_root, tmp_path / "data")
    video = json.loads((root / "video/ann/tvqa/tvqa_val.jsonl").read_text().splitlines()[0])["vid_name"]
    (root / f"video/vis_features/tv/demo/{video}.npz").unlink()
    assert main(command("test", "--submit", "--data.missing_features=skip", root=root)) == 2
    assert re.search(r"tvqa_val_predictions.json: \d+ of the \d+ examples have no prediction", capsys.readouterr().err)
