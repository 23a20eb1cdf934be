"""Several strategies at once, such as an adapter and task-specific prompts (VL-Adapter, section 6)."""

from __future__ import annotations

from collections.abc import Sequence

from vl_peft.errors import ConfigError
from vl_peft.tuning.base import Tunable, Tuning


class Combined(Tuning):
    """Strategies that do not collide; what any of them trains, trains.

    Args:
        strategies: in the order in which they are added.
    """

    def __init__(self, strategies: Sequence[Tuning]) -> None:
        super().__init__()
        if not strategies:
            raise ConfigError("Combined needs at least one tuning strategy.")
        self.strategies = list(strategies)

    def extend(self, backbone: Tunable) -> None:
        """Add what each of them adds."""
        for strategy in self.strategies:
            strategy.extend(backbone)

    def unfreeze(self, backbone: Tunable) -> None:
        """Let train what any of them lets train."""
        for strategy in self.strategies:
            strategy.unfreeze(backbone)
