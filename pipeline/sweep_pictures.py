"""A study as pictures: what its accuracy depends on, and how it went."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from .files import replacing
from .study import PICTURES, Sweep


def draw(result: Sweep) -> list[Path]:
    """importance.png, where the importance is known, and history.png, in the study's folder."""
    figures = {PICTURES[0]: history(result)}
    if result.importance:
        figures[PICTURES[1]] = importance(result)
    for name, figure in figures.items():
        with replacing(result.folder / name) as temporary:
            figure.savefig(temporary, dpi=150)
    return [result.folder / name for name in figures]


def history(result: Sweep) -> Figure:
    """`draw_history`, alone."""
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(title=f"Study {result.study}")
    draw_history(axes, result)
    return figure


def importance(result: Sweep) -> Figure:
    """`draw_importance`, alone."""
    figure = Figure(figsize=(7, 3), layout="constrained")
    axes = figure.add_subplot(title=f"What the accuracy of study {result.study} depends on")
    draw_importance(axes, result)
    return figure


def draw_history(axes: Axes, result: Sweep) -> None:
    """Every trial's accuracy, and the best so far."""
    marks = {"complete": "o", "pruned": "x", "running": "+", "fail": "+"}
    tried = [t for t in result.trials if t.validation_accuracy is not None]
    for state, mark in marks.items():
        of_state = [t for t in tried if t.state == state]
        if of_state:
            axes.scatter(
                [t.number for t in of_state],
                [100 * (t.validation_accuracy or 0) for t in of_state],
                marker=mark,
                label=state,
            )
    whole = [t for t in tried if t.state == "complete"]
    best: list[float] = []
    for trial in whole:
        best.append(max([100 * (trial.validation_accuracy or 0), *best[-1:]]))
    axes.step([t.number for t in whole], best, where="post", label="best so far")
    axes.set(xlabel="trial", ylabel="validation accuracy (%)")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend()
    axes.grid(alpha=0.3)


def draw_importance(axes: Axes, result: Sweep) -> None:
    """One bar a setting, the most important on top."""
    shares = sorted(result.importance.items(), key=lambda item: item[1])
    bars = axes.barh([name.replace("_", " ") for name, _ in shares], [100 * s for _, s in shares])
    axes.bar_label(bars, fmt="%.0f", padding=3)
    axes.set(xlabel="part of the variance (%)", xlim=(0, 105))
