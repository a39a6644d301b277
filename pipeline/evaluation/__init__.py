"""How good every artefact of a run is: accuracy, what quantization cost, and what is too hard."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from deploy.runner.scores import probabilities

from .. import __version__
from ..data import Dataset, Split, dataset_of, load_dataset
from ..errors import UsageError
from ..interval import wilson
from ..precisions import FORMATS, USUAL
from ..run_folder import RunFolder
from ..verify.runtimes import Runtimes
from .artefacts import Artefact, artefacts_of
from .calibration import coverage, expected_error, reliability
from .challenges import CHALLENGES, SEVERITIES, apply
from .paired import mcnemar

EVALUATION = "evaluation.json"

Array = npt.NDArray[Any]
OnStep = Callable[[str], None]


def evaluate_run(
    run: RunFolder,
    formats: Sequence[str] = FORMATS,
    precisions: Sequence[str] = USUAL,
    *,
    other: str | None = None,
    max_drop: float | None = None,
    challenges: bool = False,
    images: int | None = None,
    seed: int = 0,
    on_step: OnStep = lambda _: None,
) -> dict[str, Any]:
    """Evaluate every artefact on the test images, or on those of the data set `other`.

    `max_drop`, in percentage points, is how much less accurate than the fp32 program an artefact
    may be for "passed". `images` limits those of the challenges. Of the run's own data the report
    is saved as evaluation.json; a dry run returns nothing. Raises UsageError, Missing or BadInput.
    """
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise UsageError(f"--max-drop {max_drop:g}", "give percentage points, as in 0.1")
    if images is not None and images < 1:
        raise UsageError(f"--images {images}", "give 1 or more")
    dataset = dataset_of(run) if other is None else other_data(run, other)
    with Runtimes() as runtimes:
        found, skipped = artefacts_of(run, formats, precisions, runtimes)
        if other is None:
            run.wants(EVALUATION)
        if run.plan is not None:
            return {}
        rows = _rows(found, dataset, max_drop, on_step)
        report: dict[str, Any] = {
            "run": run.name,
            "dataset": dataset.name,
            "test_images": len(dataset.test),
            "max_drop": max_drop,
            "passed": all(row["passed"] for row in rows),
            "skipped": skipped,
            "artefacts": rows,
        }
        if challenges:
            some = Split(dataset.test.images[:images], dataset.test.labels[:images])
            report["challenges"] = _challenged(found, some, seed, on_step)
    if other is None:
        config = {"pipeline": __version__, "max_drop": max_drop, "challenges": challenges}
        config |= {"images": images, "seed": seed}
        files = list(dict.fromkeys(artefact.file for artefact in found))
        run.commit_json(EVALUATION, report, config, files, allow_nan=False)
    return report


def other_data(run: RunFolder, name: str) -> Dataset:
    """Pictures as the run prepares them; what it was trained on is split as it was then."""
    seed, preparation = run.training["config"]["seed"], run.training["preparation"]
    dataset = load_dataset(name, run.input_shape, seed, preparation=preparation)
    labels = tuple(run.training["labels"])
    if dataset.labels != labels:
        raise UsageError(
            f"--dataset {name} has other classes ({', '.join(dataset.labels[:5])}, ...)",
            f"the run knows {', '.join(labels[:5])}, ...",
        )
    return dataset


def _rows(
    found: list[Artefact], dataset: Dataset, max_drop: float | None, on_step: OnStep
) -> list[dict[str, Any]]:
    """The fp32 program first, which the others are compared with."""
    pixels, labels = dataset.test.images.numpy(), dataset.test.labels.numpy()
    rows: list[dict[str, Any]] = []
    decided: list[Array] = []
    for artefact in found:
        on_step(artefact.name)
        scores = artefact.scores(pixels)
        decided.append(scores.argmax(axis=1))
        right, float_right = decided[-1] == labels, decided[0] == labels
        paired = mcnemar(float_right, right)
        low, high = wilson(int(right.sum()), len(labels))
        drop = 100 * float(float_right.mean() - right.mean())
        chances = probabilities(scores, artefact.contract)
        flips = np.flatnonzero(decided[-1] != decided[0])
        change = [
            int(right[labels == number].sum()) - int(float_right[labels == number].sum())
            for number in range(len(dataset.labels))
        ]
        rows.append(
            {
                "file": artefact.file,
                "configuration": artefact.configuration,
                "precision": artefact.precision,
                "accuracy": float(right.mean()),
                "interval": [low, high],
                "right": int(right.sum()),
                "drop": drop,
                "passed": max_drop is None or drop <= max_drop + 1e-9,
                "only_fp32_right": paired.only_first,
                "only_this_right": paired.only_second,
                "mcnemar_p": paired.p,
                "per_class_change": change,
                "flips": [int(image) for image in flips],
                "calibration_error": expected_error(chances, labels),
                "reliability": reliability(chances, labels),
                "coverage": coverage(chances, labels),
            }
        )
    return rows


def _challenged(found: list[Artefact], images: Split, seed: int, on_step: OnStep) -> dict[str, Any]:
    """Accuracies of all artefacts under every challenge, and whether int8 is the more fragile."""
    labels = images.labels.numpy()
    unchanged = [_right(artefact, images.images, labels) for artefact in found]
    table = []
    for challenge in CHALLENGES.values():
        right: list[list[Array]] = [[one] for one in unchanged]
        for severity in range(1, SEVERITIES + 1):
            on_step(f"{challenge.name} ({severity} of {SEVERITIES})")
            pixels = apply(challenge, severity, images.images, seed)
            for number, artefact in enumerate(found):
                right[number].append(_right(artefact, pixels, labels))
        table.append(
            {
                "challenge": challenge.name,
                "meaning": challenge.meaning,
                "levels": list(challenge.levels),
                # By artefact, of the unchanged images and of each severity.
                "right": [[int(each.sum()) for each in one] for one in right],
                "fragility": _fragility(found, right),
            }
        )
    return {
        "images": len(labels),
        "seed": seed,
        "artefacts": [[one.file, one.configuration, one.precision] for one in found],
        "table": table,
    }


def _right(artefact: Artefact, pixels: Tensor, labels: Array) -> Array:
    return np.asarray(artefact.scores(pixels.numpy()).argmax(axis=1) == labels)


def _fragility(found: list[Artefact], right: list[list[Array]]) -> dict[str, Any] | None:
    """The int8 program against the fp32 program on the changed images of all severities."""
    programs = {
        artefact.precision: number
        for number, artefact in enumerate(found)
        if artefact.file.endswith(".pt2")
    }
    if not {"fp32", "int8"} <= set(programs):
        return None
    first, second = (np.concatenate(right[programs[name]][1:]) for name in ("fp32", "int8"))
    return dataclasses.asdict(mcnemar(first, second)) | {"images": len(first)}
