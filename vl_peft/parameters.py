"""Where the parameters of a tuned backbone are and which of them train."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from rich.table import Table
from torch import nn

from vl_peft.backbones.base import Backbone
from vl_peft.tuning.library import LibraryLinear


@dataclass(frozen=True)
class Part:
    """A group of parameters: how many there are, and how many of them train."""

    name: str
    total: int
    trainable: int


def count_parts(backbone: Backbone, vision: nn.Module | None = None) -> list[Part]:
    """Every parameter of the backbone, and of a vision encoder before it, once, by part; the last row is the sum.

    The parts are those of the paper's accounting: the token table, the language model's weights, its norms, the
    visual embedding, and what the tuning strategy added.
    """
    seen: set[int] = set()

    def count(name: str, modules: Iterable[nn.Module]) -> Part:
        parameters = [p for module in modules for p in module.parameters() if id(p) not in seen]
        parameters = list({id(p): p for p in parameters}.values())
        seen.update(map(id, parameters))
        return Part(name, sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad))

    added = [module for name, module in backbone.named_modules() if name.endswith(".delta") or name == "added"]
    added += [p for m in backbone.modules() if isinstance(m, LibraryLinear) for p in [nn.ParameterList(m.own())]]
    parts = [
        count("token embedding", [backbone.lm.get_input_embeddings()]),
        count("layer norms", backbone.language_norms()),
        count("visual embedding", [backbone.visual_embedding]),
        count("tuning strategy", added),
        count("language model weights", [backbone]),
    ]
    parts.insert(1, parts.pop())
    if vision is not None:
        parts.append(count("vision encoder", [vision]))
    return [*parts, Part("total", sum(p.total for p in parts), sum(p.trainable for p in parts))]


def parts_table(parts: list[Part], title: str) -> Table:
    """The parts as a table for the screen."""
    table = Table("part", title=title)
    for heading in ("parameters", "trainable", "% of all"):
        table.add_column(heading, justify="right")
    total = parts[-1].total
    for part in parts:
        style = "bold" if part is parts[-1] else None
        table.add_row(part.name, f"{part.total:,}", f"{part.trainable:,}", f"{part.trainable / total:.2%}", style=style)
    return table
