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
from itertools import groupby
from typing import Literal, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from vl_peft.errors import ConfigError

Block = Literal["self", "cross", "ff", "head"]
Role = Literal["q", "k", "v", "in", "out"]
Sharing = Literal["single", "multiple", "shared_down", "shared_up"]


class Route:
    """Which task the current batch is of, or which one each of its rows.

    The backbone sets it in every forward and generate and nothing resets it: a layer that is recomputed in the
    backward pass (gradient checkpointing) must see the same tasks again.
    """

    def __init__(self, tasks: Sequence[str]) -> None:
        self.tasks = tuple(tasks)
        self.runs: tuple[tuple[str, int], ...] = ((self.tasks[0], 1),)
        self.order: Tensor | None = None  # of the rows, if those of a task are not side by side

    def set(self, *rows: str) -> None:
        """Send what follows through the parts of these tasks: of one task for a whole batch, or of one for each row.

        Raises:
            ConfigError: if the strategy was not built for a task.
        """
        for task in set(rows):
            if task not in self.tasks:
                raise ConfigError(f"Unknown task '{task}': the model was built for {', '.join(self.tasks)}.")
        order = sorted(range(len(rows)), key=lambda i: rows.index(rows[i]))  # by task, in the order of their first rows
        self.runs = tuple((task, len(list(run))) for task, run in groupby(rows[i] for i in order))
        self.order = None if order == list(range(len(rows))) else torch.tensor(order)

    def each(self, run: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
        """``run(task, *rows)`` for the rows of each task, put together again in their order.

        Args:
            run: called once for each task; rows of a task that are not side by side are copied together for it.
            inputs: each ``[B, ...]``, or ``[B * k, ...]`` when every row was repeated k times (beams).
        """
        if len(self.runs) == 1:
            return run(self.runs[0][0], *inputs)
        repeats = len(inputs[0]) // sum(size for _, size in self.runs)
        order = None if self.order is None else _repeated(self.order, repeats).to(inputs[0].device)
        pieces = [(x if order is None else x[order]).split([size * repeats for _, size in self.runs]) for x in inputs]
        out = torch.cat([run(task, *rows) for (task, _), *rows in zip(self.runs, *pieces, strict=True)])
        return out if order is None else out[order.argsort()]


def _repeated(order: Tensor, times: int) -> Tensor:
    """The order of rows each of which stands ``times`` times in a row."""
    return (order[:, None] * times + torch.arange(times)).flatten()


class PerTask(nn.Module):
    """One part of a delta (or a prompt): shared by all tasks or one for each. Called like the part itself."""

    def __init__(self, make: Callable[[], nn.Module], route: Route, shared: bool) -> None:
        super().__init__()
        self.route, self.shared = route, shared
        self.parts = nn.ModuleDict({task: make() for task in (("shared",) if shared else route.tasks)})

    def forward(self, *inputs: Tensor) -> Tensor:
        """The output of the part of each row's task; inputs and output ``[B, ...]``."""
        if self.shared:
            out: Tensor = self.parts["shared"](*inputs)
            return out
        return self.route.each(lambda task, *rows: self.parts[task](*rows), *inputs)


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

    def plain(self) -> nn.Linear:
        """The same Linear (the same parameter objects) without the delta."""
        linear = nn.Linear(self.in_features, self.out_features, self.bias is not None, device="meta")
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)

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
        block: self-attention, cross-attention, feed-forward, or the output head of the whole model.
        role: query, key, value or output projection of attention; input or output of the feed-forward block.
        owner: the module that holds the Linear.
        name: the Linear's attribute name in its owner.
    """

    stack: Literal["encoder", "decoder"]
    layer: int
    block: Block
    role: Role
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
    """What a tuning strategy needs of a backbone.

    Attributes:
        route: which task each row is of; a strategy's parts read it.
        added: what a strategy adds outside of the sites, by name; prompts that the backbone puts before its text are
            ``encoder_prompt`` and ``decoder_prompt``.
    """

    route: Route
    added: nn.ModuleDict
    lm: nn.Module

    @property
    def visual_embedding(self) -> nn.Module: ...
    @property
    def dim(self) -> int: ...
    def sites(self) -> Iterable[Site]: ...
    def head(self) -> Site: ...
    def language_norms(self) -> Iterable[nn.Module]: ...
    def position_biases(self) -> Iterable[nn.Module]: ...
    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]: ...


class Tuning(ABC):
    """A tuning strategy: what is added to a backbone and what of it trains.

    Args:
        layer_norms: train the norms of the language model.
        visual_embedding: train the embedding of the visual features.
        biases: train the biases of the language model's Linears and norms.
        lm_head: train the output head, which is the token table too.
        position_bias: train T5's relative position bias (the published code does when it means to train biases).
    """

    def __init__(
        self,
        layer_norms: bool = True,
        visual_embedding: bool = True,
        biases: bool = False,
        lm_head: bool = False,
        position_bias: bool = False,
    ) -> None:
        self.layer_norms, self.visual_embedding, self.biases = layer_norms, visual_embedding, biases
        self.lm_head, self.position_bias = lm_head, position_bias

    def attach(self, backbone: Tunable, tasks: Sequence[str]) -> None:
        """Freeze the backbone, add what the strategy adds, and set what trains.

        Args:
            backbone: changed in place.
            tasks: names of the tasks there will be.
        """
        backbone.route = Route(tasks)
        for parameter in backbone.parameters():
            parameter.requires_grad_(False)
        self.extend(backbone)
        self.unfreeze(backbone)

    def unfreeze(self, backbone: Tunable) -> None:
        """Let those parts of the backbone train that the options name."""
        if self.visual_embedding:
            backbone.visual_embedding.requires_grad_(True)
        if self.layer_norms:
            for norm in backbone.language_norms():
                norm.requires_grad_(True)
        if self.biases:
            linears = [site.linear for site in backbone.sites()]
            for module in (*linears, *backbone.language_norms()):
                if isinstance(bias := getattr(module, "bias", None), nn.Parameter):
                    bias.requires_grad_(True)
        if self.lm_head:
            backbone.head().linear.weight.requires_grad_(True)
        if self.position_bias:
            for module in backbone.position_biases():
                module.requires_grad_(True)

    @abstractmethod
    def extend(self, backbone: Tunable) -> None:
        """Add the strategy's own modules to a frozen backbone; what is new trains."""


def part_is_shared(part: str, sharing: Sharing) -> bool:
    """Whether all tasks use the same part: every part if ``single``, none if ``multiple``, else the one named."""
    return sharing == "single" or sharing == f"shared_{part}"


def check_factor(reduction_factor: int) -> int:
    """The reduction factor itself.

    Raises:
        ConfigError: if it is below 1.
    """
    if reduction_factor < 1:
        raise ConfigError(f"reduction_factor must be at least 1, not {reduction_factor}.")
    return reduction_factor


def units_of(dim: int, reduction_factor: int) -> int:
    """Units of a bottleneck: dim // reduction_factor.

    Raises:
        ConfigError: if that is none.
    """
    if dim < reduction_factor:
        raise ConfigError(f"reduction_factor {reduction_factor} leaves no unit of {dim}.")
    return dim // reduction_factor


def draw_normal(module: nn.Module, std: float) -> None:
    """Begin every Linear and Embedding of a module as N(0, std), the Linears' biases as 0."""
    for part in module.modules():
        if isinstance(part, nn.Linear | nn.Embedding):
            nn.init.normal_(part.weight, std=std)
        if isinstance(part, nn.Linear):
            nn.init.zeros_(part.bias)


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that train, by name."""
    return {name: p for name, p in module.named_parameters() if p.requires_grad}
