"""The report's drawings, each from facts or observations: SVG with its text alternative."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.patches import Rectangle
from matplotlib.ticker import FixedLocator, FormatStrFormatter, LogLocator, NullLocator

from ..interval import wilson
from ..study import from_document
from ..sweep_pictures import draw_history, draw_importance
from .drawing import BLUE, GREEN, GREY, OF_PRECISION, ORANGE, figure, styled, svg
from .observations import Histogram

Record = dict[str, Any]

MISTAKES = LinearSegmentedColormap.from_list("mistakes", [(ORANGE, 0.0), (ORANGE, 0.7)])


def learning_curves(history: Sequence[Record]) -> Markup:
    """Loss, and error of training and validation images, over epochs."""
    epochs = [entry["number"] for entry in history]
    with styled():
        drawing = figure(7.5, 2.8)
        loss, error = drawing.subplots(1, 2)
        loss.plot(epochs, [entry["loss"] for entry in history], color=BLUE)
        loss.set(xlabel="epoch", ylabel="training loss", ylim=(0, None))
        for key, colour, label in (
            ("accuracy", BLUE, "training, distorted images, moving weights"),
            ("validation_accuracy", ORANGE, "validation, averaged weights"),
        ):
            values = [100 * (1 - entry[key]) for entry in history]
            error.plot(epochs, values, color=colour, label=label)
        error.set_yscale("symlog", linthresh=0.1)  # logarithmic, and yet no error has its place
        error.set(xlabel="epoch", ylabel="error (%)", ylim=(0, 100))
        error.yaxis.set_major_locator(FixedLocator([0, 0.1, 1, 10, 100]))
        error.yaxis.set_major_formatter(FormatStrFormatter("%g"))
        error.legend(fontsize=8, loc="lower right", bbox_to_anchor=(1, 1))  # above the curves
        for axes in (loss, error):
            axes.grid(visible=True)
    last = history[-1]
    return svg(
        drawing,
        f"Training loss falls from {history[0]['loss']:.3f} to {last['loss']:.3f} in "
        f"{len(history)} epochs; validation accuracy ends at {last['validation_accuracy']:.2%}.",
    )


def confusions(counts: Mapping[str, npt.NDArray[np.int64]], labels: Sequence[str]) -> list[Markup]:
    """A matrix for each precision, all in the colours of one scale."""
    most = max([1, *(int((each - np.diag(each.diagonal())).max()) for each in counts.values())])
    return [_confusion(each, labels, precision, most) for precision, each in counts.items()]


def _confusion(
    counts: npt.NDArray[np.int64], labels: Sequence[str], precision: str, most: int
) -> Markup:
    """Rows are what images are, columns what they are taken for; colour is of the mistakes, of
    which `most` is the strongest.
    """
    classes = len(labels)
    mistakes = counts.astype(float)
    np.fill_diagonal(mistakes, np.nan)
    side = min(7.0, 1.2 + 0.34 * classes)
    with styled():
        drawing = figure(side + 0.3, side)
        axes = drawing.subplots()
        axes.imshow(mistakes, cmap=MISTAKES, vmin=0, vmax=most)
        if classes <= 20:
            for row, column in np.ndindex(counts.shape):
                if counts[row, column]:
                    count = str(counts[row, column])
                    axes.text(column, row, count, ha="center", va="center", fontsize=8)
        every = -(-classes // 40)
        ticks = range(0, classes, every)
        axes.set_xticks(ticks, [labels[i] for i in ticks], rotation=0 if classes <= 10 else 90)
        axes.set_yticks(ticks, [labels[i] for i in ticks])
        axes.set(xlabel="answer", ylabel="truth", title=f"{precision}, test images")
    right, of = int(np.trace(counts)), int(counts.sum())
    return svg(drawing, f"Confusion matrix in {precision}: {right} of {of} on the diagonal.")


def receptive_fields(image: npt.NDArray[np.uint8], layers: Sequence[Record]) -> Markup | None:
    """What the middle value of each layer sees of an image, H x W or H x W x 3. None if nothing
    sees a part only.
    """
    height, width = image.shape[:2]
    fields = dict.fromkeys(
        (rows, columns)
        for rows, columns in (layer["field"] for layer in layers)
        if (rows, columns) != (1, 1) and (rows < height or columns < width)
    )
    if not fields:
        return None
    with styled():
        drawing = figure(3.6 + 2.2, 3.6)
        axes = drawing.subplots()
        axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        colours = [BLUE, ORANGE, GREEN, "#e69f00", "#cc79a7", "#56b4e9", "#f0e442"]
        for number, (rows, columns) in enumerate(fields):
            names = [e["name"] for e in layers if tuple(e["field"]) == (rows, columns)]
            corner = (width / 2 - columns / 2 - 0.5, height / 2 - rows / 2 - 0.5)
            label = f"{rows}x{columns}: {', '.join(names[:2])}" + (", ..." if names[2:] else "")
            colour = colours[number % len(colours)]
            axes.add_patch(
                Rectangle(corner, columns, rows, fill=False, ec=colour, lw=2, label=label)
            )
        axes.set_axis_off()
        axes.set_anchor("W")  # leaves the room to the legend
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1), fontsize=8, borderaxespad=0)
    sizes = ", ".join(f"{rows}x{columns}" for rows, columns in fields)
    return svg(drawing, f"A test image and the receptive fields of its middle: {sizes} pixels.")


def histograms(found: Sequence[Histogram]) -> Markup:
    """One small drawing a layer: how often which value, and what int8 can hold."""
    return _small(found, _activations, "value", "Histograms of each layer's float values")


def _activations(axes: Axes, each: Histogram) -> None:
    axes.stairs(each.counts, each.edges, fill=True, color=BLUE, alpha=0.8)
    if each.low is not None and each.high is not None:
        axes.axvspan(each.low, each.high, color=ORANGE, alpha=0.2, lw=0)
    axes.set_yscale("log")
    axes.set_title(each.layer, fontsize=9)


def weights(found: dict[str, npt.NDArray[Any]]) -> Markup:
    """One small drawing a layer: how often which weight."""

    def draw(axes: Axes, each: tuple[str, npt.NDArray[Any]]) -> None:
        name, values = each
        axes.hist(values.ravel(), bins=60, color=GREEN)
        axes.set_title(name, fontsize=9)

    return _small(list(found.items()), draw, "weight", "Histograms of each layer's weights")


def _small(items: Sequence[Any], draw: Any, unit: str, alternative: str) -> Markup:
    columns = min(4, len(items))
    rows = -(-len(items) // columns)
    with styled():
        drawing = figure(1.9 * columns, 1.7 * rows)
        grid = drawing.subplots(rows, columns, squeeze=False)
        for axes, each in zip(grid.flat, items, strict=False):
            draw(axes, each)
            axes.tick_params(labelsize=7)
        for axes in grid.flat[len(items) :]:
            axes.set_visible(False)
        drawing.supxlabel(unit, fontsize=9)
        drawing.supylabel("count", fontsize=9)
    return svg(drawing, f"{alternative}: {len(items)} of them.")


def sensitivity(record: Record) -> Markup:
    """For each layer quantized alone: change of accuracy, and the output's SQNR."""
    found = [*record["layers"], {"layer": "int8 as it is", **record["int8"]}]
    names, exact = [each["layer"] for each in found], record["fp32"]["accuracy"]
    with styled():
        drawing = figure(7.5, 1.0 + 0.27 * len(found))
        noise, change = drawing.subplots(1, 2, sharey=True)
        # What is exact has no noise, and no bar.
        noise.barh(names, [each["sqnr_db"] or 0 for each in found], color=BLUE)
        noise.set(xlabel="SQNR of the output (dB)")
        change.plot([100 * (each["accuracy"] - exact) for each in found], names, "o", color=ORANGE)
        change.axvline(0, color=GREY, lw=1)
        change.set(xlabel="change of accuracy (percentage points)")
        noise.invert_yaxis()
        for axes in (noise, change):
            axes.grid(visible=True, axis="x")
    noisy = [each for each in record["layers"] if each["sqnr_db"] is not None]
    worst = min(noisy, key=lambda each: float(each["sqnr_db"]), default=None)
    told = f"; {worst['layer']} is the noisiest, {worst['sqnr_db']:.1f} dB" if worst else ""
    return svg(drawing, f"What each of {len(record['layers'])} layers costs by itself{told}.")


def study(record: Record) -> Markup:
    """A sweep: every trial's accuracy with the best so far, and the importance of the settings."""
    result = from_document(record)
    with styled():
        drawing = figure(7.5, 2.8)
        if result.importance:
            trials, settings = drawing.subplots(1, 2, width_ratios=(3, 2))
            draw_importance(settings, result)
        else:
            trials = drawing.subplots()
        draw_history(trials, result)
    tried = sum(trial.validation_accuracy is not None for trial in result.trials)
    first = max(result.importance, key=result.importance.__getitem__, default="")
    told = f"; {first.replace('_', ' ')} matters most" if first else ""
    return svg(drawing, f"Accuracies of {tried} trials of study {result.study}{told}.")


def steps_off(table: Record) -> Markup | None:
    """int8: how many integers are how many steps off exact arithmetic, by file and runtime."""
    columns = [f"{file}\n{name}" for file, name, _ in table["columns"]]
    off = sorted({int(step) for steps in table["steps"] for step in steps})
    if off in ([], [0]):
        return None
    with styled():
        drawing = figure(7.5, 1.0 + 0.42 * len(columns))
        axes = drawing.subplots()
        size = 0.8 / len(off)
        palette = {-2: "#56b4e9", -1: BLUE, 0: GREY, 1: ORANGE, 2: "#e69f00"}
        for number, step in enumerate(off):
            places = np.arange(len(columns)) + (number - (len(off) - 1) / 2) * size
            counts = [steps.get(str(step), 0) for steps in table["steps"]]
            colour = palette.get(step, GREEN)
            axes.barh(places, counts, size, color=colour, label=f"{step:+d}" if step else "0")
        axes.set_yticks(range(len(columns)), columns, fontsize=7)
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="integers of all layers (logarithmic)")
        axes.legend(  # above the axes, which bars may fill
            loc="lower right",
            bbox_to_anchor=(1, 1),
            title="steps off",
            fontsize=8,
            title_fontsize=8,
            ncols=len(off),
        )
    return svg(
        drawing, "How many integers of each file and runtime are how many steps off the exact ones."
    )


def latencies(rows: Sequence[Record]) -> Markup:
    """The median, with a line to the 99th percentile, of one image at a time; logarithmic."""
    names = [f"{row['runtime']}  {row['threads']} thr" for row in rows]
    with styled():
        drawing = figure(7.5, 0.9 + 0.27 * len(rows))
        axes = drawing.subplots()
        for precision, colour in OF_PRECISION.items():
            at = [n for n, row in enumerate(rows) if row["precision"] == precision]
            middle = [rows[n]["p50_us"] for n in at]
            reach = [[0.0] * len(at), [rows[n]["p99_us"] - rows[n]["p50_us"] for n in at]]
            if at:
                axes.errorbar(
                    middle, at, xerr=reach, fmt="o", color=colour, capsize=3, label=precision
                )
        axes.set_yticks(range(len(rows)), names, fontsize=8)
        axes.invert_yaxis()
        axes.set(xscale="log", xlabel="µs per image: median, and up to the 99th percentile")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter(FormatStrFormatter("%g"))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.grid(visible=True, axis="x")
        axes.legend(fontsize=8)
    best = min(rows, key=lambda row: float(row["p50_us"]))
    return svg(
        drawing,
        f"Latencies of {len(rows)} ways to run the model; the fastest median is "
        f"{best['p50_us']:.1f} µs with {best['runtime']} in {best['precision']}.",
    )


def challenge_curves(record: Record) -> Markup:
    """Accuracy over severity, a small drawing for each challenge, with 95 % intervals."""
    of = record["images"]
    programs = [
        (number, precision)
        for number, (file, _, precision) in enumerate(record["artefacts"])
        if file.endswith(".pt2")
    ]
    columns = 3
    rows = -(-len(record["table"]) // columns)
    with styled():
        drawing = figure(7.5, 2.2 * rows)
        grid = drawing.subplots(rows, columns, squeeze=False, sharey=True)
        for axes, entry in zip(grid.flat, record["table"], strict=False):
            for number, precision in programs:
                right = entry["right"][number]
                shares = [100 * count / of for count in right]
                ends = [[100 * end for end in wilson(count, of)] for count in right]
                colour, dashes = OF_PRECISION[precision], "--" if precision == "int8" else "-"
                axes.plot(range(len(right)), shares, dashes, color=colour, label=precision)
                low, high = zip(*ends, strict=True)
                axes.fill_between(range(len(right)), low, high, color=colour, alpha=0.15, lw=0)
            axes.set_title(f"{entry['challenge']}\n{entry['meaning']}", fontsize=8)
            axes.set_xticks(range(6), ["none", *(f"{level:g}" for level in entry["levels"])])
            axes.tick_params(labelsize=7)
            axes.grid(visible=True)
        grid.flat[0].legend(fontsize=8)
        drawing.supylabel("accuracy (%)", fontsize=9)
    return svg(drawing, f"Accuracy of the programs under {len(record['table'])} challenges.")


def calibration(rows: Sequence[Record]) -> Markup:
    """Of the programs: how often answers of a confidence are right, and what rejecting does."""
    with styled():
        drawing = figure(7.5, 3.0)
        sure, rejected = drawing.subplots(1, 2)
        sure.plot([0, 100], [0, 100], color=GREY, lw=1)
        for row in rows:
            colour = OF_PRECISION[row["precision"]]
            bins = [each for each in row["reliability"] if each["images"]]
            confidence = [100 * each["confidence"] for each in bins]
            right = [100 * each["accuracy"] for each in bins]
            label = f"{row['precision']}, ECE {100 * row['calibration_error']:.2f} %"
            sure.plot(confidence, right, "o-", color=colour, ms=3, label=label)
            known = [each for each in row["coverage"] if each["accuracy"] is not None]
            answered = [100 * each["answered"] for each in known]
            error = [100 * (1 - each["accuracy"]) for each in known]
            rejected.plot(answered, error, "o-", color=colour, ms=3, label=row["precision"])
        sure.set(xlabel="probability of the answer (%)", ylabel="answers that are right (%)")
        rejected.set(xlabel="images answered (%)", ylabel="wrong of those (%)", ylim=(0, None))
        sure.legend(fontsize=8)
        for axes in (sure, rejected):
            axes.grid(visible=True)
    return svg(drawing, "Reliability of the probabilities, and errors among what is answered.")
