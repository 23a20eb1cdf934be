"""Compacter (Karimi Mahabadi et al. 2021, "Compacter"): adapters whose Linears are sums of Kronecker products.

    H = sum_i kron(rule_i [n, n], W_i [in / n, out / n])        y = x H + b

With a factorized W_i = left_i right_i of low rank, the Linear has about (in + out) rank instead of in * out / n
parameters. ``LowRankAdapter`` factorizes the plain Linear: y = x (left right) + b.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vl_peft.errors import ConfigError
from vl_peft.tuning.adapter import BottleneckTuning
from vl_peft.tuning.base import Tunable

RuleSharing = Literal["own", "tasks", "model"]


def glorot(*shape: int) -> nn.Parameter:
    """Glorot-uniform with gain sqrt(2) for each matrix of ``[..., in, out]``, as the published code draws."""
    bound = (12 / (shape[-2] + shape[-1])) ** 0.5
    return nn.Parameter(torch.empty(shape).uniform_(-bound, bound))


class LowRankLinear(nn.Module):
    """``x left right + b``: ``[..., n_in]`` to ``[..., n_out]``."""

    def __init__(self, n_in: int, n_out: int, rank: int) -> None:
        super().__init__()
        self.left, self.right = glorot(n_in, rank), glorot(rank, n_out)
        self.b = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """Through the low rank."""
        return x @ self.left @ self.right + self.b


class PHMLinear(nn.Module):
    """A Linear by parameterized hypercomplex multiplication (Zhang et al. 2021): ``[..., n_in]`` to ``[..., n_out]``.

    Args:
        n_in: divisible by the rule's n.
        n_out: divisible by the rule's n.
        rule: ``[n, n, n]``; the same object may serve many Linears.
        rank: of the factorized matrices; ``None`` keeps them whole.
    """

    def __init__(self, n_in: int, n_out: int, rule: nn.Parameter, rank: int | None) -> None:
        super().__init__()
        n = len(rule)
        if n_in % n or n_out % n:
            raise ConfigError(f"division {n} does not divide the sizes {n_in} and {n_out} of an adapter's Linear.")
        self.rule, self.factorized = rule, rank is not None
        if rank is None:
            self.matrices = glorot(n, n_in // n, n_out // n)
        else:
            self.left, self.right = glorot(n, n_in // n, rank), glorot(n, rank, n_out // n)
        self.b = nn.Parameter(torch.zeros(n_out))

    def forward(self, x: Tensor) -> Tensor:
        """``x H + b``; H is made anew in every call, which costs little beside the product."""
        n = len(self.rule)
        matrices = self.left @ self.right if self.factorized else self.matrices
        h = torch.einsum("iab,icd->acbd", self.rule, matrices)  # kron: rows a c, columns b d
        return x @ h.reshape(n * matrices.shape[1], n * matrices.shape[2]) + self.b


class Compacter(BottleneckTuning):
    """Adapters of :class:`PHMLinear`.

    Args:
        division: n of the hypercomplex multiplication.
        rank: of the factorized matrices; ``None`` does not factorize (the published scripts).
        rule: every Linear has its ``own``; the ``tasks`` share one for each down and up; one for the whole ``model``.
        rule_std: the rule begins as N(0, rule_std).
        **bottleneck: see :class:`BottleneckTuning`.
    """

    def __init__(
        self,
        division: int = 2,
        rank: int | None = None,
        rule: RuleSharing = "own",
        rule_std: float = 0.01,
        **bottleneck: Any,
    ) -> None:
        super().__init__(**bottleneck)
        self.division, self.rank, self.rule, self.rule_std = division, rank, rule, rule_std
        self._rule_of_model: nn.Parameter | None = None

    def _new_rule(self) -> nn.Parameter:
        return nn.Parameter(torch.randn((self.division,) * 3) * self.rule_std)

    def extend(self, backbone: Tunable) -> None:
        """As every bottleneck."""
        self._rule_of_model = self._new_rule() if self.rule == "model" else None
        super().extend(backbone)

    def linear_maker(self, n_in: int, n_out: int) -> Callable[[], nn.Module]:
        """PHM Linears with the rule that they share."""
        shared = self._rule_of_model if self.rule == "model" else self._new_rule() if self.rule == "tasks" else None
        return lambda: PHMLinear(n_in, n_out, self._new_rule() if shared is None else shared, self.rank)


class LowRankAdapter(BottleneckTuning):
    """Adapters of :class:`LowRankLinear`.

    Args:
        rank: of both Linears.
        **bottleneck: see :class:`BottleneckTuning`.
    """

    def __init__(self, rank: int = 1, **bottleneck: Any) -> None:
        super().__init__(**bottleneck)
        self.rank = rank

    def linear_maker(self, n_in: int, n_out: int) -> Callable[[], nn.Module]:
        """Low-rank Linears."""
        return lambda: LowRankLinear(n_in, n_out, self.rank)
