"""The training plan as a table: what share of the steps each task gets."""

from __future__ import annotations

from collections.abc import Callable

from rich.table import Table

from vl_peft.sampling import Schedule


def plan_table(schedule: Callable[[int], Schedule], epochs: int | None, worlds: tuple[int, ...] = (1,)) -> Table:
    """Per task: examples, batch size, share of the steps, passes over the data and steps per epoch.

    The batch size is that of a process and, for one number of processes above 1, also that of all together.

    Args:
        schedule: makes the schedule for a number of processes.
        epochs: length of the run, if it is known.
        worlds: numbers of processes to show.
    """
    plans = {world: schedule(world) for world in worlds}
    length = f", {epochs} epochs" if epochs and epochs > 0 else ""
    caption = "xN: steps per epoch on N processes" if len(worlds) > 1 else None
    title = f"plan: temperature {schedule(1).temperature:g}{length}"
    table = Table(title=title, caption=caption)
    table.add_column("task", no_wrap=True)
    headings = ["examples", "batch", "share", "passes", "steps"]
    if len(worlds) > 1:
        headings[-1:] = [f"x{world}" for world in worlds]
    for heading in headings:
        table.add_column(heading, justify="right")
    first = plans[worlds[0]]
    for task, size in first.sizes.items():
        batch = _batch(first.batch_sizes[task], worlds[0])
        facts = f"{size:,}", batch, f"{first.shares()[task]:.1%}", f"{first.passes()[task]:.2f}"
        table.add_row(task, *facts, *(f"{plan.steps()[task]:,}" for plan in plans.values()))
    sums = (f"{sum(plan.steps().values()):,}" for plan in plans.values())
    table.add_row("all", f"{sum(first.sizes.values()):,}", "", "100.0%", "", *sums, style="bold")
    return table


def _batch(size: int, world: int) -> str:
    """``50``, or on two processes ``2 x 25 = 50``; where it does not divide, ``50 on 3``."""
    if world == 1:
        return str(size)
    return f"{size} on {world}" if size % world else f"{world} x {size // world} = {size}"
