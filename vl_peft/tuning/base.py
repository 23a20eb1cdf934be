"""The mechanism under every tuning strategy: sites, deltas, the route and sharing.

A *site* is a Linear of the backbone that has a role. A *delta* changes its output: ``y' = delta(x, y)`` with x
``[B, S, in]`` the Linear's input and y ``[B, S, out]`` its output. A delta is made of named *parts* which all tasks
share or of which each task owns one; the *route* says which task the current batch is of. A *tuning strategy* puts
deltas on sites and says what else trains.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from torch import Tensor, nn
from torch.nn import functional

from vl_peft.errors import ConfigError

Sharing = Literal["single", "multiple", "shared_down", "shared_up"]


class Route:
    """Which task the current batch is of.

    The backbone sets it in every forward and generate and nothing resets it: a layer that is recomputed in the
    backward pass (gradient checkpointing) must see the same task again.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        self.task = self.tasks[0]

    def set(self, task: str) -> None:
        """Send what follows through the parts of this task.

        Raises:
            ConfigError: if the strategy was not built for the task.
        """
        if task not in self.tasks:
            raise ConfigError(f"Unknown task '{task}': the model was built for {', '.join(self.tasks)}.")
        self.task = task


class PerTask(nn.Module):
    """One part of a delta (or a prompt): shared by all tasks or one for each. Called like the part itself."""

    def __init__(self, make: Callable[[], nn.Module], route: Route, shared: bool) -> None:
        super().__init__()
        self.route, self.shared = route, shared
        self.parts = nn.ModuleDict({task: make() for task in (("shared",) if shared else route.tasks)})

    def forward(self, *inputs: Tensor) -> Tensor:
        """The output of the current task's part."""
        out: Tensor = self.parts["shared" if self.shared else self.route.task](*inputs)
        return out


class TunedLinear(nn.Linear):
    """A Linear of the backbone with a delta on its output. Its own weight stays where the checkpoint has it."""

    delta: nn.Module

    @classmethod
    def of(cls, linear: nn.Linear, delta: nn.Module) -> TunedLinear:
        """The same Linear (the same parameter objects) with a delta."""
        tuned = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        tuned.weight, tuned.bias = linear.weight, linear.bias
        tuned.delta = delta
        return tuned.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """``delta(x, W x + b)``: x ``[..., in]`` to ``[..., out]``."""
        out: Tensor = self.delta(x, functional.linear(x, self.weight, self.bias))
        return out


@dataclass(frozen=True)
class Site:
    """A Linear that a delta can be put on.

    Attributes:
        stack: encoder or decoder.
        layer: from 0.
        block: self-attention, cross-attention or feed-forward.
        role: query, key, value or output projection of attention; input or output of the feed-forward block.
        owner: the module that holds the Linear.
        name: the Linear's attribute name in its owner.
    """

    stack: Literal["encoder", "decoder"]
    layer: int
    block: Literal["self", "cross", "ff"]
    role: Literal["q", "k", "v", "in", "out"]
    owner: nn.Module
    name: str

    @property
    def linear(self) -> nn.Linear:
        """The Linear at this site."""
        linear: nn.Linear = getattr(self.owner, self.name)
        return linear

    def put(self, delta: nn.Module) -> None:
        """Let the delta change the Linear's output.

        Raises:
            ConfigError: if a delta stands here already.
        """
        if isinstance(self.linear, TunedLinear):
            where = f"{self.stack} layer {self.layer}, {self.block} {self.role}"
            raise ConfigError(f"Two tuning strategies want the same site: {where}.")
        setattr(self.owner, self.name, TunedLinear.of(self.linear, delta))


class Tunable(Protocol):
    """What a tuning strategy needs of a backbone."""

    route: Route

    @property
    def visual_embedding(self) -> nn.Module: ...
    def sites(self) -> Iterable[Site]: ...
    def language_norms(self) -> Iterable[nn.Module]: ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...
    def add_module(self, name: str, module: nn.Module | None) -> None: ...


class Tuning(ABC):
    """A tuning strategy: what is added to a backbone and what of it trains.

    Args:
        layer_norms: train the layer norms of the language model.
        visual_embedding: train the embedding of the visual features.
    """

    def __init__(self, layer_norms: bool = True, visual_embedding: bool = True) -> None:
        self.layer_norms, self.visual_embedding = layer_norms, visual_embedding

    def attach(self, backbone: Tunable, tasks: Sequence[str]) -> None:
        """Freeze the backbone, add what the strategy adds, and set what trains.

        Args:
            backbone: changed in place.
            tasks: names of the tasks there will be.
        """
        backbone.route = Route(tasks)
        for parameter in backbone.parameters():
            parameter.requires_grad_(False)
        if self.visual_embedding:
            backbone.visual_embedding.requires_grad_(True)
        if self.layer_norms:
            for norm in backbone.language_norms():
                norm.requires_grad_(True)
        self.extend(backbone)

    @abstractmethod
    def extend(self, backbone: Tunable) -> None:
        """Add the strategy's own modules to a frozen backbone; what is new trains."""


def part_is_shared(part: str, sharing: Sharing) -> bool:
    """Whether all tasks use the same part: every part if ``single``, none if ``multiple``, else the one named."""
    return sharing == "single" or sharing == f"shared_{part}"


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
