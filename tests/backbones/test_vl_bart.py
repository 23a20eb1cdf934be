from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from vl_peft.backbones import VLT5, VLBart
from vl_peft.batch import Batch, Generation
from vl_peft.errors import ConfigError
from vl_peft.tuning import Adapter

MakeBart = Callable[..., VLBart]
MakeBatch = Callable[..., Batch]


def widen(tensor: Tensor, by: int, value: float) -> Tensor:
    return torch.cat([tensor, tensor.new_full((len(tensor), by, *tensor.shape[2:]), value)], dim=1)


def row(batch: Batch, i: int) -> Batch:
    tensors = {k: v[i : i + 1] for k, v in vars(batch).items() if isinstance(v, Tensor)}
    return replace(batch, ids=[batch.ids[i]], **tensors)


@torch.no_grad()
def losses(bart: VLBart, batch: Batch) -> Tensor:
    out: Tensor = bart(batch)
    return out


@pytest.fixture
def bart(make_bart: MakeBart) -> VLBart:
    model = make_bart()
    model.route.tasks = ("a", "b")
    return model


# -- what the losses depend on --------------------------------------------------------------------------------------


def test_padding_changes_nothing(bart: VLBart, make_batch: MakeBatch) -> None:
    batch = make_batch()
    base = losses(bart, batch)
    assert base.shape == (3, 3)
    assert base.dtype == torch.float32
    assert base.min() > 0
    text = replace(batch, input_ids=widen(batch.input_ids, 3, 77), attention_mask=widen(batch.attention_mask, 3, 0))
    visual = replace(
        batch,
        visual=widen(batch.visual, 2, 5.0),
        visual_mask=widen(batch.visual_mask, 2, 0),
        image_index=widen(batch.image_index, 2, 1),
        object_index=widen(batch.object_index, 2, 9),
        boxes=widen(batch.boxes, 2, 0.5),
    )
    torch.testing.assert_close(losses(bart, text), base)
    torch.testing.assert_close(losses(bart, visual), base)
    target = losses(bart, replace(batch, labels=widen(batch.labels, 2, -100)))
    torch.testing.assert_close(target[:, :3], base)
    assert target[:, 3:].tolist() == [[0, 0]] * 3


@pytest.mark.parametrize("name", ["input_ids", "visual", "image_index", "object_index", "boxes", "visual_mask"])
def test_every_input_matters(bart: VLBart, make_batch: MakeBatch, name: str) -> None:
    batch = make_batch()
    value = getattr(batch, name).clone()
    value[0, 0] = 1 - value[0, 0].clamp(max=1)
    change = (losses(bart, replace(batch, **{name: value})) - losses(bart, batch)).abs()
    assert change[0].min() > 1e-4
    assert change[1:].max() < 1e-5


def test_examples_do_not_see_each_other(bart: VLBart, make_batch: MakeBatch) -> None:
    batch = make_batch()
    alone = [row(batch, i) for i in range(3)]
    torch.testing.assert_close(torch.cat([losses(bart, one) for one in alone]), losses(bart, batch))
    generation = Generation(max_length=8)
    assert [bart.generate(one, generation)[0] for one in alone] == bart.generate(batch, generation)


def test_the_order_of_visual_tokens_is_only_in_their_indices(bart: VLBart, make_batch: MakeBatch) -> None:
    batch = make_batch()
    names = ("visual", "image_index", "object_index", "boxes")
    mixed = replace(batch, **{name: getattr(batch, name)[:, [2, 0, 3, 1]] for name in names})
    torch.testing.assert_close(losses(bart, mixed), losses(bart, batch))


def test_losses_are_the_cross_entropy_of_the_logits(bart: VLBart, make_batch: MakeBatch) -> None:
    batch = make_batch()
    batch.labels[1, 1:] = -100
    encoded, mask = bart.encode(batch)
    assert encoded.shape == (3, 6 + 4, 32)
    read = torch.tensor([[2, *ids[:-1]] for ids in batch.labels.tolist()]).clamp(min=1)  # -100 is read as padding, 1
    scores = bart.logits(bart.decode(read, encoded, mask)).log_softmax(dim=-1)
    wanted = -scores.gather(2, batch.labels.clamp(min=0)[..., None]).squeeze(2)
    torch.testing.assert_close(losses(bart, batch), wanted.detach() * (batch.labels != -100))


def test_a_batch_without_labels_has_no_losses(bart: VLBart, make_batch: MakeBatch) -> None:
    with pytest.raises(ValueError, match="no labels"):
        bart(replace(make_batch(), labels=None))


def test_an_unknown_task_is_refused(bart: VLBart, make_batch: MakeBatch) -> None:
    with pytest.raises(ConfigError, match=r"Unknown task 'c': the model was built for a, b"):
        bart(make_batch(task="c"))


# -- gradient checkpointing -----------------------------------------------------------------------------------------


def test_gradient_checkpointing_recomputes_the_same(make_bart: MakeBart, make_batch: MakeBatch) -> None:
    results, calls = [], []
    for on in (False, True):
        bart = make_bart(gradient_checkpointing=on)
        Adapter(sharing="multiple").attach(bart, ["a", "b"])
        torch.manual_seed(0)
        for name, parameter in bart.named_parameters():
            if ".delta." in name:
                nn.init.normal_(parameter, std=0.25)
        bart.train()
        seen: list[int] = []
        bart.lm.model.encoder.layers[0].fc1.register_forward_hook(lambda *_, seen=seen: seen.append(1))
        loss = bart(make_batch("b")).sum() + bart(make_batch("b", seed=1)).sum()
        loss.backward()
        results.append({"loss": loss} | {n: p.grad for n, p in bart.named_parameters() if p.grad is not None})
        calls.append(len(seen))
    assert calls == [2, 4]
    assert results[0].keys() == results[1].keys()
    assert not any(".parts.a." in name for name in results[1])
    for name, value in results[0].items():
        torch.testing.assert_close(results[1][name], value, msg=lambda text, name=name: f"{name}: {text}")


# -- making, saving and loading -------------------------------------------------------------------------------------


def test_a_saved_backbone_gives_the_same_outputs(
    bart: VLBart, make_batch: MakeBatch, redraw: Callable[..., None], tmp_path: Path
) -> None:
    redraw(bart, seed=5)
    bart.save_pretrained(tmp_path)
    loaded = VLBart(str(tmp_path))
    assert all(module.training for module in loaded.modules()), "loaded for training: dropout is on"
    loaded.eval()
    loaded.route.tasks = ("a",)
    assert loaded.visual_embedding.feature_dim == 8
    assert loaded.tokenizer.hf.get_vocab() == bart.tokenizer.hf.get_vocab()
    torch.testing.assert_close(losses(loaded, make_batch()), losses(bart, make_batch()), rtol=0, atol=0)
    ours, theirs = bart.state_dict(), loaded.state_dict()
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not ours[name].equal(theirs[name])] == []


def test_random_init_takes_only_the_shape(bart: VLBart, tmp_path: Path) -> None:
    bart.save_pretrained(tmp_path)

    def fresh(seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        return VLBart(str(tmp_path), feature_dim=12, random_init=True).state_dict()

    first, again, other, saved = fresh(1), fresh(1), fresh(2), bart.state_dict()
    drawn = [name for name, value in first.items() if value.ndim == 2 and name != "lm.final_logits_bias"]
    assert len(drawn) > 20
    assert all(first[name].equal(again[name]) for name in first)
    assert not any(first[name].equal(other[name]) for name in drawn)
    assert first["visual_embedding.feature.0.weight"].shape == (32, 12)
    assert not any(first[name].equal(saved[name]) for name in drawn)
    # Everything new begins as N(0, 0.02).
    for name in ("visual_embedding.feature.0.weight", "visual_embedding.image.weight", "lm.model.shared.weight"):
        assert first[name].std().item() == pytest.approx(0.02, rel=0.3)
    assert first["visual_embedding.feature.0.bias"].eq(0).all()


def test_rows_for_the_extra_tokens_are_added(write_bart: Callable[..., Path], tmp_path: Path) -> None:
    folder = write_bart(tmp_path, vocab_size=120)
    torch.manual_seed(0)
    language_model = VLBart.model_class(VLBart.model_class.config_class.from_pretrained(folder))
    language_model.save_pretrained(folder)
    bart = VLBart(str(folder), feature_dim=8)
    table = bart.lm.get_input_embeddings().weight
    assert table.shape == (320, 32)
    assert table[:120].equal(language_model.get_input_embeddings().weight)
    assert table[120:].std().item() == pytest.approx(0.02, rel=0.05)
    assert bart.lm.get_output_embeddings().weight is table


def test_features_of_another_size_are_refused(bart: VLBart, tmp_path: Path) -> None:
    bart.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="reads features of size 8, the data has 9"):
        VLBart(str(tmp_path), feature_dim=9)


def test_a_size_of_features_is_needed(bart_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"give model\.backbone\.feature_dim"):
        VLBart(str(bart_folder), random_init=True)


def test_a_missing_model(bart_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"No tokenizer at '.*nothing'"):
        VLBart(str(tmp_path / "nothing"), feature_dim=8)
    with pytest.raises(ConfigError, match="No BartForConditionalGeneration at"):
        VLBart(str(bart_folder), feature_dim=8)  # a configuration and a tokenizer, but no weights


# -- answering ------------------------------------------------------------------------------------------------------


def argmax_loop(bart: VLBart, batch: Batch, length: int) -> list[list[int]]:
    """Greedy tokens by the definition: everything is computed anew for each token."""
    encoded, mask = bart.encode(batch)
    ids = torch.full((len(batch), 1), 2)
    for _ in range(length - 1):
        ids = torch.cat([ids, bart.logits(bart.decode(ids, encoded, mask)[:, -1:]).argmax(dim=-1)], dim=1)
    return [tokens[: tokens.index(2, 1) + 1] if 2 in tokens[1:] else tokens for tokens in ids.tolist()]


@pytest.mark.parametrize("seed", range(3))
@torch.no_grad()
def test_greedy_generation(
    bart: VLBart, make_batch: MakeBatch, redraw: Callable[..., None], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    redraw(bart, seed=seed)
    bart.lm.final_logits_bias[0, 2] = 4  # so that some examples end early
    monkeypatch.setattr(bart.tokenizer, "decode", Tensor.tolist)
    batch = make_batch(size=8, seed=seed)
    wanted = argmax_loop(bart, batch, 9)
    width = max(map(len, wanted))
    assert bart.generate(batch, Generation(max_length=9)) == [ids + [1] * (width - len(ids)) for ids in wanted]


@torch.no_grad()
def test_generation_settings_of_the_folder_have_no_effect(
    bart: VLBart, make_batch: MakeBatch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bart.save_pretrained(tmp_path)
    settings = {"forced_bos_token_id": 0, "forced_eos_token_id": 2, "min_length": 5, "length_penalty": 2.0}
    hub = settings | {"num_beams": 4, "no_repeat_ngram_size": 3, "early_stopping": True, "repetition_penalty": 3.0}
    (tmp_path / "generation_config.json").write_text(json.dumps(hub))
    loaded = VLBart(str(tmp_path)).eval()
    loaded.load_state_dict(bart.state_dict())
    loaded.route.tasks = ("a",)
    for model in (bart, loaded):
        monkeypatch.setattr(model.tokenizer, "decode", Tensor.tolist)
    for generation in (Generation(max_length=8), Generation(num_beams=3, max_length=8)):
        assert loaded.generate(make_batch(), generation) == bart.generate(make_batch(), generation)
    assert loaded.generate(make_batch(), Generation(max_length=8)) == argmax_loop(bart, make_batch(), 8)


@torch.no_grad()
def test_generated_texts_are_decoded(bart: VLBart, make_batch: MakeBatch) -> None:
    batch = make_batch()
    wanted = [" ".join(f"w{i}" for i in ids if 4 <= i < 120) for ids in argmax_loop(bart, batch, 6)]
    assert bart.generate(batch, Generation(max_length=6)) == wanted


@torch.no_grad()
def test_choose_takes_the_likeliest_first_token(bart: VLBart, make_batch: MakeBatch) -> None:
    batch = make_batch(size=20)
    encoded, mask = bart.encode(batch)
    after = bart.logits(bart.decode(torch.tensor([[2, 0]] * 20), encoded, mask))[:, 1]
    numbers = [10, 20, 30, 40]
    wanted = [f"w{max(numbers, key=scores.__getitem__)} w5" for scores in after.tolist()]
    assert len(set(wanted)) > 1
    assert bart.choose(batch, [f"w{i} w5" for i in numbers]) == wanted


def test_a_tie_goes_to_the_first_candidate(bart: VLBart, make_batch: MakeBatch) -> None:
    assert bart.choose(make_batch(), ["w7 w9", "w7 w8", "w7"]) == ["w7 w9"] * 3
    nn.init.zeros_(bart.lm.get_input_embeddings().weight)  # all logits are equal
    assert bart.choose(make_batch(), ["w9", "w8", "w10"]) == ["w9"] * 3


# -- what strategies see --------------------------------------------------------------------------------------------


def test_sites_are_all_linears_of_the_layers(bart: VLBart) -> None:
    sites = list(bart.sites())
    linears = [m for stack in (bart.lm.model.encoder, bart.lm.model.decoder) for m in stack.layers.modules()]
    linears = [m for m in linears if isinstance(m, nn.Linear)]
    assert len(sites) == 2 * (4 + 2) + 2 * (8 + 2)
    assert {id(site.linear) for site in sites} == {id(linear) for linear in linears}
    places = {(s.stack, s.layer, s.block, s.role): s for s in sites}
    assert len(places) == len(sites)
    decoder = bart.lm.model.decoder.layers[1]
    assert places["decoder", 1, "cross", "out"].linear is decoder.encoder_attn.out_proj
    assert places["decoder", 1, "self", "v"].linear is decoder.self_attn.v_proj
    assert places["decoder", 1, "ff", "out"].linear is decoder.fc2
    assert places["encoder", 0, "ff", "in"].linear is bart.lm.model.encoder.layers[0].fc1


def test_language_norms_are_all_norms_but_the_visual_ones(bart: VLBart) -> None:
    Adapter().attach(bart, ["a"])
    visual = {id(m) for m in bart.visual_embedding.modules()}
    wanted = {id(m) for m in bart.modules() if isinstance(m, nn.LayerNorm)} - visual
    norms = list(bart.language_norms())
    assert len(norms) == 2 + 2 * 2 + 2 * 3
    assert {id(norm) for norm in norms} == wanted


@pytest.mark.parametrize("kind", [VLBart, VLT5])
def test_new_token_rows_are_always_the_same(
    request: pytest.FixtureRequest, tmp_path: Path, kind: type[VLBart] | type[VLT5]
) -> None:
    """They are frozen and in no checkpoint, and every visual token has one added."""
    write = request.getfixturevalue("write_bart" if kind is VLBart else "write_t5")
    folder = str(write(tmp_path, vocab_size=120))
    config = json.loads((tmp_path / "config.json").read_text())
    tables = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        lm = kind(folder, feature_dim=8, random_init=True).lm
        assert lm.lm_head.weight is lm.get_input_embeddings().weight
        tables.append(lm.get_input_embeddings().weight.detach())
    assert tables[0].shape == (320, 32) and config["vocab_size"] == 120
    assert torch.equal(tables[0][120:], tables[1][120:]) and not torch.equal(tables[0][:120], tables[1][:120])
    wanted = 0.02 if kind is VLBart else 1.0
    assert tables[0][120:].std().item() == pytest.approx(wanted, rel=0.05)
