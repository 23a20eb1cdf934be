"""Full fine-tuning: everything trains (the upper reference of the paper, Table 1)."""

from __future__ import annotations

from vl_peft.tuning.base import Tunable, Tuning


class FullFineTuning(Tuning):
    """All parameters of the backbone train; nothing is added."""

    def __init__(self) -> None:
        super().__init__()

    def extend(self, backbone: Tunable) -> None:
        """Unfreeze everything."""
        for parameter in backbone.parameters():
            parameter.requires_grad_(True)
