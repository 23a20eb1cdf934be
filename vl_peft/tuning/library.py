"""Any method of Hugging Face ``peft`` that changes Linears (IA3, DoRA, VeRA, ...), routed as our own strategies are.

``peft`` is an extra: ``pip install vl_peft[peft]``.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from importlib import import_module
from typing import Any, Literal

from torch import Tensor, nn

from vl_peft.errors import ConfigError
from vl_peft.tuning.base import Block, Role, Route, Tunable, Tuning


class LibraryLinear(nn.Module):
    """A layer of ``peft`` in the place of a Linear, which sends each row through its task's adapter.

    Args:
        layer: the layer, with one adapter for each name.
        route: which task each row is of.
        shared: whether there is one adapter, ``"shared"``, for all tasks.
    """

    def __init__(self, layer: nn.Module, route: Route, shared: bool) -> None:
        super().__init__()
        self.layer, self.route, self.shared = layer, route, shared

    @property
    def weight(self) -> Tensor:
        """Of the Linear itself."""
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        return weight

    @property
    def bias(self) -> Tensor | None:
        """Of the Linear itself."""
        bias: Tensor | None = self.layer.bias  # type: ignore[assignment]
        return bias

    def own(self) -> list[nn.Parameter]:
        """What the method added."""
        return [p for name, p in self.layer.named_parameters() if not name.startswith("base_layer.")]

    def _run(self, task: str, x: Tensor) -> Tensor:
        # peft's own set_adapter also freezes the other adapters, whose gradients of this step may be still to come.
        self.layer._active_adapter = [task]  # type: ignore[assignment]
        out: Tensor = self.layer(x)
        return out

    def forward(self, x: Tensor) -> Tensor:
        """``[B, S, in]`` to ``[B, S, out]``."""
        return self._run("shared", x) if self.shared else self.route.each(self._run, x)


class LibraryTuning(Tuning):
    """A method of ``peft`` on some of the Linears.

    Args:
        method: its configuration class, such as ``IA3Config`` or ``peft.VeraConfig``.
        options: arguments of that class, without ``target_modules``.
        sharing: one adapter for all tasks or one for each.
        roles: which Linears of each block.
        blocks: which blocks.
        layer_norms: train the norms of the language model.
        **trains: what else trains, see :class:`Tuning`.
    """

    def __init__(
        self,
        method: str = "IA3Config",
        options: Mapping[str, Any] | None = None,
        sharing: Literal["single", "multiple"] = "single",
        roles: Collection[Role] = ("q", "v"),
        blocks: Collection[Block] = ("self", "cross"),
        layer_norms: bool = False,
        **trains: Any,
    ) -> None:
        super().__init__(layer_norms=layer_norms, **trains)
        self.method, self.options, self.sharing = method, dict(options or {}), sharing
        self.roles, self.blocks = roles, blocks

    def extend(self, backbone: Tunable) -> None:
        """Put the method's layers in the places of the chosen Linears.

        Raises:
            ConfigError: if there is no such method, or it does not change Linears.
        """
        names = {id(module): name for name, module in backbone.lm.named_modules()}
        sites = [site for site in backbone.sites() if site.role in self.roles and site.block in self.blocks]
        targets = [f"{names[id(site.owner)]}.{site.name}" for site in sites]
        if taken := [type(site.linear).__name__ for site in sites if type(site.linear) is not nn.Linear]:
            raise ConfigError(f"Two tuning strategies want the same site: LibraryTuning found a {taken[0]}.")
        tasks = ("shared",) if self.sharing == "single" else backbone.route.tasks
        self._inject(backbone.lm, targets, tasks)
        for site in sites:
            layer: nn.Module = getattr(site.owner, site.name)
            wrapped = LibraryLinear(layer, backbone.route, self.sharing == "single")
            for parameter in wrapped.own():
                parameter.requires_grad_(True)
            setattr(site.owner, site.name, wrapped)

    def _inject(self, lm: nn.Module, targets: list[str], names: Sequence[str]) -> None:
        """Let peft replace the Linears, with an adapter of each name; its own wrapper of the model is not kept."""
        try:
            peft = import_module("peft")
        except ImportError as error:
            raise ConfigError("LibraryTuning needs the package peft: pip install peft.") from error
        kind = getattr(peft, self.method.rpartition(".")[2], None)
        if kind is None:
            raise ConfigError(f"peft has no '{self.method}'; see its configuration classes, such as IA3Config.")
        try:
            configs = [kind(target_modules=targets, **copy.deepcopy(self.options)) for _ in names]
            model = peft.get_peft_model(lm, configs[0], names[0])
            for name, config in zip(names[1:], configs[1:], strict=True):
                model.add_adapter(name, config)
        except (TypeError, ValueError) as error:
            raise ConfigError(f"{self.method} cannot be used here: {str(error).splitlines()[0]}") from error
