"""The training plan as a table: what share of the steps each task gets."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from vl_peft.sampling import Schedule


def plan_table(schedule: Callable[[int], Schedule], epochs: int | None, worlds: tuple[int, ...] = (1,)) -> Table:
    """Per task: examples, share, batch size, steps and passes per epoch.

    Args:
        schedule: makes the schedule for a number of processes.
        epochs: length of the run, if it is known.
        worlds: numbers of processes to show.
    """
    plans = {world: schedule(world) for world in worlds}
    length = f", {epochs} epochs" if epochs and epochs > 0 else ""
    table = Table("task", title=f"plan: temperature {schedule(1).temperature:g}{length}")
    for heading in ("examples", "batch", "share"):
        table.add_column(heading, justify="right")
    for world in worlds:
        suffix = "" if len(worlds) == 1 else f"\non {world} device{'s' if world > 1 else ''}"
        table.add_column(f"steps/epoch{suffix}", justify="right")
        table.add_column(f"passes/epoch{suffix}", justify="right")
    first = plans[worlds[0]]
    for task, size in first.sizes.items():
        row = [task, f"{size:,}", str(first.batch_sizes[task] // worlds[0]), f"{first.shares()[task]:.1%}"]
        for plan in plans.values():
            row += [f"{plan.steps()[task]:,}", f"{plan.passes()[task]:.2f}"]
        table.add_row(*row)
    total = ["all", f"{sum(first.sizes.values()):,}", "", "100.0%"]
    for plan in plans.values():
        total += [f"{sum(plan.steps().values()):,}", ""]
    table.add_row(*total, style="bold")
    return table
