from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from vl_peft.errors import ConfigError
from vl_peft.tuning import FullFineTuning, PerTask, Route, Site, Tuning
from vl_peft.tuning.base import Tunable, TunedLinear, part_is_shared, trainable


class Toy(nn.Module):
    """The least that a strategy can be attached to: one Linear, one norm, one visual embedding."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.norm, self.visual_embedding = nn.Linear(3, 2), nn.LayerNorm(2), nn.Linear(4, 3)
        self.route = Route(["any"])

    def sites(self) -> Iterator[Site]:
        yield Site("encoder", 1, "ff", "out", self, "linear")

    def language_norms(self) -> Iterator[nn.Module]:
        yield self.norm


class Add(nn.Module):
    """A delta with one part: ``y + sum(x) * w``."""

    def __init__(self, route: Route, shared: bool) -> None:
        super().__init__()
        self.part = PerTask(lambda: nn.Linear(1, 2, bias=False), route, shared)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        out: Tensor = y + self.part(x.sum(-1, keepdim=True))
        return out


class AddTuning(Tuning):
    """Puts ``Add`` on every site."""

    def extend(self, backbone: Tunable) -> None:
        for site in backbone.sites():
            site.put(Add(backbone.route, shared=False))


def named(task: str, x: Tensor) -> Tensor:
    """Rows times 1 for task a, 10 for b, 100 for c."""
    return x * 10 ** "abc".index(task)


def test_route_starts_at_the_first_task_and_keeps_what_was_set() -> None:
    route, one = Route(["a", "b"]), torch.ones(2, 1)
    assert torch.equal(route.each(named, one), one)
    route.set("b")
    with pytest.raises(ConfigError, match=r"Unknown task 'c': the model was built for a, b\."):
        route.set("c")
    assert torch.equal(route.each(named, one), 10 * one)


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("rows", ["abc", "aabbbc", "cabac", "bb"])
def test_route_sends_each_row_through_its_own_task(rows: str, beams: int) -> None:
    route = Route(["a", "b", "c"])
    route.set(*rows)
    x = torch.arange(1.0, beams * len(rows) + 1)
    wanted = x * torch.tensor([10.0 ** "abc".index(task) for task in rows]).repeat_interleave(beams)
    assert torch.equal(route.each(named, x), wanted)


@pytest.mark.parametrize("shared", [True, False])
def test_per_task_parts(shared: bool) -> None:
    route, made = Route(["a", "b", "c"]), []

    def make() -> nn.Module:
        part = nn.Linear(2, 2)
        nn.init.constant_(part.weight, len(made))
        nn.init.zeros_(part.bias)
        made.append(part)
        return part

    part = PerTask(make, route, shared)
    outputs = []
    for task in route.tasks:
        route.set(task)
        outputs.append(part(torch.ones(1, 2)).tolist())
    assert outputs == [[[0, 0]]] * 3 if shared else [[[0, 0]], [[2, 2]], [[4, 4]]]
    assert [p.shape for p in part.parameters()] == [p.shape for m in made for p in m.parameters()]
    assert len(made) == (1 if shared else 3)


@pytest.mark.parametrize("bias", [True, False])
def test_tuned_linear_is_the_same_linear_with_a_delta(bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(3, 2, bias=bias).eval()
    delta = Add(Route(["a"]), shared=True)
    tuned = TunedLinear.of(linear, delta)
    assert tuned.weight is linear.weight
    assert tuned.bias is linear.bias
    assert not tuned.training
    assert set(linear.state_dict()) <= set(tuned.state_dict())
    x = torch.randn(2, 5, 3)
    weight = delta.part.parts["shared"].weight
    torch.testing.assert_close(tuned(x), linear(x) + x.sum(-1, keepdim=True) * weight[:, 0])


def test_two_deltas_on_one_site_are_refused() -> None:
    toy = Toy()
    (site,) = toy.sites()
    first = nn.Identity()
    site.put(first)
    with pytest.raises(ConfigError, match="Two tuning strategies want the same site: encoder layer 1, ff out"):
        site.put(nn.Identity())
    assert site.linear.delta is first


@pytest.mark.parametrize("layer_norms", [True, False])
@pytest.mark.parametrize("visual_embedding", [True, False])
def test_what_trains(layer_norms: bool, visual_embedding: bool) -> None:
    toy = Toy()
    AddTuning(layer_norms=layer_norms, visual_embedding=visual_embedding).attach(toy, ["a", "b"])
    wanted = {f"linear.delta.part.parts.{task}.weight" for task in "ab"}
    wanted |= {"norm.weight", "norm.bias"} if layer_norms else set()
    wanted |= {"visual_embedding.weight", "visual_embedding.bias"} if visual_embedding else set()
    assert set(trainable(toy)) == wanted
    assert toy.route.tasks == ("a", "b")


def test_attaching_leaves_the_values_of_the_backbone_alone() -> None:
    toy, plain = Toy(), Toy().state_dict()
    AddTuning().attach(toy, ["a"])
    state = toy.state_dict()
    assert all(state[name].equal(value) for name, value in plain.items())


def test_full_fine_tuning_trains_everything_and_adds_nothing() -> None:
    toy = Toy()
    toy.linear.requires_grad_(False)
    FullFineTuning().attach(toy, ["a"])
    assert set(trainable(toy)) == set(Toy().state_dict())


def test_which_parts_are_shared() -> None:
    table = {sharing: [part_is_shared(part, sharing) for part in ("down", "up")] for sharing in SHARINGS}
    assert table == SHARINGS


SHARINGS = {
    "single": [True, True],
    "multiple": [False, False],
    "shared_down": [True, False],
    "shared_up": [False, True],
}
