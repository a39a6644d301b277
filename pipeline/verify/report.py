"""What verification found: layers, artefacts, their verdicts, and all of it as JSON."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from deploy.runner.selftest import FP32_RELATIVE

from .. import program
from ..data import Dataset
from .compare import Difference
from .evidence import machine
from .rounding import Rounding
from .runtimes import Configuration

INT8_STEPS = 2.0
INT8_EQUAL = 0.98


@dataclass
class Layer:
    """One layer in one runtime. `difference` is from the program, each side fed by its own previous
    layer; `rounding`, for int8, is the layer's own, whatever it was fed.
    """

    tap: program.Tap
    difference: Difference = field(default_factory=Difference)
    rounding: Rounding | None = None

    @property
    def passed(self) -> bool:
        """fp32: within 2**-16 of the layer's largest value, see `FP32_RELATIVE` for the reason.

        int8: every integer is the layer's exact value rounded to the nearest; halves go either way.
        """
        if self.tap.scale is None:
            return self.difference.within(FP32_RELATIVE, relative=True)
        compared = self.difference.problem is None and self.difference.elements > 0
        return compared and self.rounding is not None and self.rounding.nearest


@dataclass
class Artefact:
    """One file in one configuration of a runtime. `error` says why there is nothing to report."""

    file: str
    precision: str
    configuration: Configuration
    layers: list[Layer]
    runtime: str = ""
    error: str | None = None
    final: Difference = field(default_factory=Difference)
    unexplained: Difference = field(default_factory=Difference)
    observer: Difference = field(default_factory=Difference)
    answers: list[npt.NDArray[np.int64]] = field(default_factory=list)

    @property
    def limit(self) -> float:
        """How far final outputs may be off on the whole test set: fp32 as every layer.

        int8: two steps from the program, rounding halves as this runtime was seen to. Near a half a
        value may fall either way in any layer, which moves the last layer's sum by a step or two;
        that is rare (some 1e-4 of the outputs), so 98 % must be equal.
        """
        return FP32_RELATIVE if self.precision == "fp32" else INT8_STEPS

    @property
    def passed(self) -> bool:
        """Final outputs within their limit on the whole test set, and every layer passed."""
        if self.error is not None or not self.layers:
            return False
        final = self.unexplained.within(self.limit, relative=self.precision == "fp32")
        if self.precision == "int8":
            final = final and self.unexplained.equal_part >= INT8_EQUAL
        return final and all(layer.passed for layer in self.layers)


def report_of(
    dataset: Dataset,
    artefacts: list[Artefact],
    scores: dict[str, Tensor],
    observer: dict[str, int],
) -> dict[str, Any]:
    """Everything that verify.json says, but for the cases."""
    labels = dataset.test.labels.numpy()
    decisions = {precision: tensor.argmax(1).numpy() for precision, tensor in scores.items()}
    return {
        "passed": bool(artefacts) and all(artefact.passed for artefact in artefacts),
        "test_images": len(labels),
        "dataset_sha256": dataset.sha256,
        "machine": machine(),
        "programs": {
            precision: {
                "accuracy": float(np.mean(answers == labels)),
                "confusion_with_fp32": _confusion(answers, decisions["fp32"], labels),
                "observer_difference": observer.get(precision),
            }
            for precision, answers in decisions.items()
        },
        "artefacts": [_artefact_record(artefact, decisions, labels) for artefact in artefacts],
    }


def _artefact_record(
    artefact: Artefact, decisions: dict[str, npt.NDArray[Any]], labels: npt.NDArray[Any]
) -> dict[str, Any]:
    record: dict[str, Any] = {
        "file": artefact.file,
        "precision": artefact.precision,
        "configuration": artefact.configuration.name,
        "shipped": artefact.configuration.shipped,
        "runtime": artefact.runtime,
        "passed": artefact.passed,
        "error": artefact.error,
    }
    if artefact.error is not None:
        return record
    answers = np.concatenate(artefact.answers)
    # The last layer's tap is the program's output; in the report it stands where it computes.
    layers = [*artefact.layers[1:], artefact.layers[0]]
    return record | {
        "accuracy": float(np.mean(answers == labels)),
        "decisions_unlike_fp32": int((answers != decisions["fp32"]).sum()),
        "flips": int((answers != decisions[artefact.precision]).sum()),
        "confusion_with_fp32": _confusion(answers, decisions["fp32"], labels),
        "final": _difference_record(artefact.final),
        "unexplained": _difference_record(artefact.unexplained),
        "limit": artefact.limit,
        "observer": _difference_record(artefact.observer),
        "layers": [
            {
                "layer": layer.tap.layer,
                "kind": layer.tap.kind,
                "passed": layer.passed,
                "difference": _difference_record(layer.difference),
                "rounding": asdict(layer.rounding) if layer.rounding else None,
                "cause": layer.rounding.cause if layer.rounding else "",
            }
            for layer in layers
        ],
    }


def _difference_record(difference: Difference) -> dict[str, Any]:
    return asdict(difference) | {
        "equal_part": difference.equal_part,
        "relative": difference.relative,
    }


def _confusion(
    answers: npt.NDArray[Any], fp32: npt.NDArray[Any], labels: npt.NDArray[Any]
) -> dict[str, int]:
    """Test images by which of the two decided rightly."""
    right, fp32_right = answers == labels, fp32 == labels
    return {
        "both right": int((right & fp32_right).sum()),
        "only fp32 right": int((~right & fp32_right).sum()),
        "only this right": int((right & ~fp32_right).sum()),
        "both wrong": int((~right & ~fp32_right).sum()),
    }
