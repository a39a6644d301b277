"""Verify: the very files and the very runner that ship, against the program, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from deploy.runner.backends import Model
from deploy.runner.contract import PRECISIONS, Contract, Quantization
from deploy.runner.scores import steps
from deploy.runner.selftest import FP32_RELATIVE

from .. import __version__, program
from ..data import Dataset
from ..errors import UsageError
from ..export import FORMATS, contract_of
from ..run_folder import RunFolder
from ..train import dataset_of
from .cases import cases_for
from .compare import Difference, compare
from .evidence import machine
from .rounding import Rounding, exact_values, predict, rounding_of
from .runtimes import CONFIGURATIONS, Configuration

REPORT = "verify.json"
INT8_STEPS = 2.0
BATCH = 100  # images whose layers are in memory at once


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
    observer_difference: int = 0
    answers: list[npt.NDArray[np.int64]] = field(default_factory=list)

    @property
    def limit(self) -> float:
        """How far final outputs may be off on the whole test set: fp32 as every layer.

        int8: two steps from the program, rounding halves as this runtime was seen to. Near a half a
        value may fall either way in any layer, which moves the last layer's sum by a step or two.
        """
        return FP32_RELATIVE if self.precision == "fp32" else INT8_STEPS

    @property
    def passed(self) -> bool:
        """Final outputs within their limit on the whole test set, and every layer passed."""
        if self.error is not None or not self.layers:
            return False
        final = self.unexplained.within(self.limit, relative=self.precision == "fp32")
        return final and all(layer.passed for layer in self.layers)


def verify_run(
    run: RunFolder,
    images: int = 1000,
    formats: Sequence[str] = tuple(FORMATS),
    precisions: Sequence[str] = PRECISIONS,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Compare every artefact with its program and write verify.json. Returns the report.

    `images` test images and some made ones go through every layer; final outputs, accuracy and
    decisions are over the whole test set. A layer that cannot be mapped, a NaN, a wrong shape or
    dtype and a runtime that is missing are failures. Raises UsageError, Missing or BadInput.
    """
    dataset = dataset_of(run)
    images = min(images, len(dataset.test))
    if images < 1:
        raise UsageError(f"--images {images}", "give 1 or more")
    files = [run.artefact(p, f) for p in precisions for f in formats]
    for file in files:
        run.need(file)
    cases = cases_for(dataset, images, seed)
    pixels = torch.cat([case.pixels for case in cases])
    scores: dict[str, Tensor] = {}
    artefacts: list[Artefact] = []
    observer: dict[str, int] = {}
    for precision in PRECISIONS:
        if precision not in precisions and precision != "fp32":
            continue
        on_step(f"{precision} program in PyTorch")
        module = program.load(run.need(run.artefact(precision, "pt2")))
        scores[precision] = program.run(module, dataset.test.images)[0]
        if precision not in precisions:  # the float program's decisions are what int8 is held to
            continue
        tapped, taps = program.with_taps(module)
        contract = contract_of(run, module, precision)
        whole, observed = program.run(module, pixels)[0], program.run(tapped, pixels)[0]
        observer[precision] = int((whole != observed).sum())
        for name in formats:
            with run.workspace() as work:
                copy = work / f"{run.model}-{precision}-tapped.{name}"
                FORMATS[name](tapped, contract, copy, tuple(tap.layer for tap in taps[1:]))
                for configuration in CONFIGURATIONS[name]:
                    on_step(f"{precision} {name} in {configuration.name}")
                    file = run.artefact(precision, name)
                    artefact = Artefact(file, precision, configuration, [Layer(t) for t in taps])
                    artefacts.append(artefact)
                    check = _Check(artefact, contract, module, tapped)
                    check.run(run.path / file, copy, pixels, dataset, scores[precision])
    report = _report(dataset, artefacts, scores, observer) | {
        "cases": {case.name: len(case.pixels) for case in cases}
    }
    with run.workspace() as work:
        (work / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        config = {"images": images, "seed": seed, "pipeline": __version__}
        run.commit({REPORT: work / REPORT}, config, files, {"passed": report["passed"]})
    return report


@dataclass(frozen=True)
class _Check:
    """Fills in one Artefact."""

    artefact: Artefact
    contract: Contract
    module: fx.GraphModule
    tapped: fx.GraphModule

    def run(self, path: Path, copy: Path, pixels: Tensor, dataset: Dataset, scores: Tensor) -> None:
        """What goes wrong on the way is a failure of the artefact, with its reason."""
        try:
            shipped = self.artefact.configuration.open(path)
            observed = self.artefact.configuration.open(copy)
            self.artefact.runtime = shipped.runtime
            self._layers(shipped, observed, pixels)
            self._test_set(shipped, dataset.test.images, scores)
        except Exception as error:  # the runtimes' own exceptions share no base
            self.artefact.error = (str(error).splitlines() or [type(error).__name__])[0]

    def _layers(self, shipped: Model, observed: Model, pixels: Tensor) -> None:
        layers = self.artefact.layers
        for start, batch in zip(range(0, len(pixels), BATCH), pixels.split(BATCH), strict=True):
            expected = program.run(self.tapped, batch)
            found = observed.run(batch.numpy())
            if len(found) != len(layers):
                raise ValueError(f"{len(found)} outputs for {len(layers)} layers: not mapped")
            for layer, here, there in zip(layers, found, expected, strict=True):
                quantization = _quantization(layer.tap)
                layer.difference += compare(here, there.numpy(), quantization, start)
            self.artefact.observer_difference += int(
                (shipped.run(batch.numpy())[0] != found[0]).sum()
            )
            if all(layer.difference.problem is None for layer in layers):
                self._roundings(batch, found)

    def _roundings(self, batch: Tensor, found: list[npt.NDArray[Any]]) -> None:
        given = {}
        for layer, values in zip(self.artefact.layers, found, strict=True):
            quantization = _quantization(layer.tap)
            if quantization is not None:
                given[layer.tap.layer] = steps(values, quantization)
        if not given:
            return
        exact = exact_values(self.module, batch, given)
        for layer in self.artefact.layers:
            name = layer.tap.layer
            rounding = rounding_of(given[name], exact[name])
            layer.rounding = rounding if layer.rounding is None else layer.rounding + rounding

    def _test_set(self, shipped: Model, images: Tensor, scores: Tensor) -> None:
        """Final outputs against the program, and against the program with this runtime's halves."""
        away = frozenset(
            layer.tap.layer
            for layer in self.artefact.layers
            if layer.rounding and layer.rounding.away
        )
        predicted = predict(self.module, images, away) if away else scores
        for start in range(0, len(images), BATCH):
            part = slice(start, start + BATCH)
            found = shipped.run(images[part].numpy())[0]
            for_program = compare(found, scores[part].numpy(), self.contract.output, start)
            explained = compare(found, predicted[part].numpy(), self.contract.output, start)
            self.artefact.final += for_program
            self.artefact.unexplained += explained
            self.artefact.answers.append(found.argmax(1).astype(np.int64))


def _quantization(tap: program.Tap) -> Quantization | None:
    if tap.scale is None or tap.zero_point is None:
        return None
    return Quantization(tap.scale, tap.zero_point)


def _report(
    dataset: Dataset,
    artefacts: list[Artefact],
    scores: dict[str, Tensor],
    observer: dict[str, int],
) -> dict[str, Any]:
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
        "flips": int((answers != decisions[artefact.precision]).sum()),
        "confusion_with_fp32": _confusion(answers, decisions["fp32"], labels),
        "final": _difference_record(artefact.final),
        "unexplained": _difference_record(artefact.unexplained),
        "limit": artefact.limit,
        "observer_difference": artefact.observer_difference,
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
