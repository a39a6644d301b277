"""Whether a probability means what it says."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from .. import __version__, program
from ..data import dataset_of
from ..errors import BadInput
from ..export import CALIBRATION, contract_of
from ..precisions import PRECISIONS
from ..run_folder import RunFolder

BINS = 15
THRESHOLDS = (0.0, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
LEAST, MOST = 0.05, 20.0  # temperatures; beyond is no calibration, but a network that says nothing

Array = npt.NDArray[Any]


def reliability(chances: Array, labels: Array) -> list[dict[str, Any]]:
    """For each of BINS equal bins of the largest probability: how many images, how sure and how
    often right. `chances` N x classes.
    """
    sure, right = chances.max(axis=1), chances.argmax(axis=1) == labels
    bins = np.clip(np.ceil(sure * BINS).astype(int) - 1, 0, BINS - 1)
    rows = []
    for number in range(BINS):
        inside = bins == number
        count = int(inside.sum())
        rows.append(
            {
                "images": count,
                "confidence": float(sure[inside].mean()) if count else None,
                "accuracy": float(right[inside].mean()) if count else None,
            }
        )
    return rows


def expected_error(chances: Array, labels: Array) -> float:
    """Expected calibration error: the mean distance of confidence and accuracy over the bins of
    `reliability`, weighted by their images (Guo et al. 2017, equation 3).
    """
    off = [
        row["images"] * abs(row["confidence"] - row["accuracy"])
        for row in reliability(chances, labels)
        if row["images"]
    ]
    return float(sum(off) / len(labels))


def coverage(chances: Array, labels: Array) -> list[dict[str, Any]]:
    """For each of THRESHOLDS, as `predict --reject` takes them: the part of the images that is then
    answered, and how much of that is right (None where nothing is).
    """
    sure, right = chances.max(axis=1), chances.argmax(axis=1) == labels
    rows = []
    for threshold in THRESHOLDS:
        answered = sure >= threshold
        share = float(right[answered].mean()) if answered.any() else None
        rows.append({"reject": threshold, "answered": float(answered.mean()), "accuracy": share})
    return rows


def fitted_temperature(scores: Tensor, labels: Tensor) -> float:
    """The temperature of the smallest cross-entropy, with three digits. `scores` N x classes.

    The loss is convex in 1 / T, so bisection by its slope finds the one minimum (Guo et al. 2017).
    """
    scores = scores.double()

    def slope(inverse: float) -> float:
        factor = torch.tensor(inverse, dtype=torch.double, requires_grad=True)
        nn.functional.cross_entropy(scores * factor, labels).backward()
        assert factor.grad is not None
        return float(factor.grad)

    low, high = 1 / MOST, 1 / LEAST
    for _ in range(50):
        middle = math.sqrt(low * high)
        low, high = (low, middle) if slope(middle) > 0 else (middle, high)
    return float(f"{1 / low:.3g}")


def calibrate_run(run: RunFolder) -> dict[str, Any]:
    """Fit each program's temperature on the validation images, for the contracts of what is
    exported from now on. Returns and saves temperatures, and the calibration error on the test
    images before and after; a dry run, nothing. Raises Missing, and BadInput for a network that
    gives probabilities, or makes no mistake on the validation images.
    """
    dataset = dataset_of(run)
    report: dict[str, Any] = {}
    images, truth = dataset.validation.images, dataset.validation.labels
    names = {precision: run.artefact(precision, "pt2") for precision in PRECISIONS}
    made = {"fp32": names["fp32"]}
    made |= {p: name for p, name in names.items() if name in run.record["artefacts"]}
    paths = {precision: run.need(name) for precision, name in made.items()}
    if not run.wants(CALIBRATION):
        return {}
    for precision, name in made.items():
        module = program.load(paths[precision])
        if contract_of(run, module, precision).scores != "logits":
            raise BadInput(
                f"{run.model} ends in a softmax: it has no scores to divide by a temperature",
                "leave the softmax out of the network; the runner takes it",
            )
        fit = program.run(module, images)[0]
        if program.accuracy(fit, truth) == 1.0:
            raise BadInput(
                f"{name} is right on all {len(truth)} validation images: nothing says how sure it "
                "may be",
                "calibrate on more data, as mnist has",
            )
        temperature = fitted_temperature(fit, truth)
        scores = program.run(module, dataset.test.images)[0].double()
        labels = dataset.test.labels.numpy()
        before, after = (
            expected_error(torch.softmax(scores / each, dim=1).numpy(), labels)
            for each in (1.0, temperature)
        )
        report[precision] = {"temperature": temperature, "before": before, "after": after}
    facts = {precision: row["temperature"] for precision, row in report.items()}
    run.commit_json(CALIBRATION, report, {"pipeline": __version__}, list(made.values()), facts)
    return report
