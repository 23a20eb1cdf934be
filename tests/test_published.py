"""Reading checkpoints of the published code; what they give is in ``parity``."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vl_peft.backbones import VLBart
from vl_peft.batch import Batch
from vl_peft.checkpoint import load_adapters
from vl_peft.cli import main
from vl_peft.errors import ConfigError, DataError
from vl_peft.published import load_published, published_names, read_published
from vl_peft.tuning import Adapter, PromptTuning

TASKS = ["vqa", "gqa"]


class Malicious:
    """A pickle that would run code."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("touched"),))


def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weight": Malicious()}, tmp_path / "evil.pth")
    with pytest.raises(DataError, match=r"evil\.pth: no checkpoint of tensors alone"):
        read_published(tmp_path / "evil.pth")
    (tmp_path / "plain.pth").write_bytes(pickle.dumps(Malicious()))
    with pytest.raises(DataError, match=r"plain\.pth: no checkpoint of tensors alone"):
        read_published(tmp_path / "plain.pth")
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", None])
def test_no_checkpoint(content: bytes | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "last.pth").write_bytes(content)
    with pytest.raises(DataError, match=r"last\.pth: no (such )?checkpoint"):
        read_published(tmp_path / "last.pth")


@pytest.fixture
def published(make_bart: Callable[..., VLBart]) -> tuple[VLBart, dict[str, torch.Tensor]]:
    """A tuned backbone and its parameters under their published names."""
    bart = make_bart()
    Adapter(sharing="single").attach(bart, TASKS)
    state = {name: t for own, t in bart.state_dict().items() for name in published_names(own, TASKS, bart=True)}
    return bart, state


def test_names_are_listed_that_are_missing_or_unknown(published: Any) -> None:
    bart, state = published
    load_published(bart, state)
    state["model.encoder.something"] = state.pop("model.encoder.layers.0.fc1.weight")
    with pytest.raises(
        ConfigError, match=r"Missing there: .*layers\.0\.fc1\.weight\).*Unknown here: model\.encoder\.something\."
    ):
        load_published(bart, state)


def test_what_tasks_share_must_be_equal(published: Any) -> None:
    bart, state = published
    name = "model.encoder.layers.0.ff_adapter.adapters.gqa.up_sampler.bias"
    state[name] = state[name] + 1
    with pytest.raises(ConfigError, match=r"gqa\.up_sampler\.bias differs from .*vqa.*do not share this part"):
        load_published(bart, state)


def test_shapes(published: Any) -> None:
    bart, state = published
    name = "model.decoder.layers.1.fc2.bias"
    state[name] = torch.zeros(7)
    with pytest.raises(ConfigError, match=r"layers\.1\.fc2\.bias has the shape \(7,\), .* \(32,\)"):
        load_published(bart, state)


@pytest.mark.parametrize("place", ["model.decoder.prompt_modules", "prompt_modules", "model.decoder_prompt_modules"])
def test_prompts_of_the_decoder_wherever_they_stand(make_bart: Callable[..., VLBart], place: str) -> None:
    bart = make_bart()
    PromptTuning(2, 3, 5, "multiple").attach(bart, TASKS)
    state = {name: t for own, t in bart.state_dict().items() for name in published_names(own, TASKS, bart=True)}
    moved = {name.replace("model.decoder.prompt_modules", place): t + 1 for name, t in state.items()}
    load_published(bart, moved)
    assert torch.equal(
        bart.added["decoder_prompt"].parts["gqa"].table.weight,
        state["model.decoder.prompt_modules.prompts.gqa.prefix_embedding.0.weight"],
    )


def test_import_from_the_command_line(
    published: Any,
    bart_folder: Path,
    tmp_path: Path,
    make_batch: Callable[..., Batch],
    capsys: pytest.CaptureFixture[str],
) -> None:
    bart, state = published
    torch.save({f"module.{name}": tensor for name, tensor in state.items()}, tmp_path / "LAST.pth")
    out = tmp_path / "out"
    assert main(["adapters", "import", str(tmp_path / "LAST.pth"), str(out), "--backbone", str(bart_folder)]) == 0
    assert "VLBart with Adapter" in capsys.readouterr().out
    batch = make_batch("gqa")
    with torch.no_grad():
        assert torch.equal(load_adapters(out).eval()(batch), bart(batch))
    # What is left of it without adapters is a pretrained backbone, with or without its visual embedding.
    with_visual = VLBart(str(out / "backbone")).visual_embedding.image.weight
    assert torch.equal(with_visual, bart.visual_embedding.image.weight)
    without = VLBart(str(out / "backbone"), feature_dim=8, visual_pretrained=False).visual_embedding.image.weight
    assert not torch.equal(without, with_visual)
