"""Verify: the very files and the very runner that ship, against the program, layer by layer."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from deploy.runner.backends import Model
from deploy.runner.contract import PRECISIONS, Contract, Quantization
from deploy.runner.scores import steps

from .. import __version__, program
from ..data import Dataset, dataset_of
from ..errors import UsageError, first_line
from ..export import FORMATS, contract_of
from ..run_folder import RunFolder
from .cases import cases_for
from .compare import compare
from .report import Artefact, Layer, report_of
from .rounding import exact_values, predict, rounding_of
from .runtimes import CONFIGURATIONS

REPORT = "verify.json"
BATCH = 100  # images whose layers are in memory at once


def verify_config(
    images: int, formats: Sequence[str], precisions: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """What run.json keeps to tell whether verifying again would say the same."""
    chosen = {"formats": sorted(formats), "precisions": sorted(precisions)}
    return {"images": images, "seed": seed, "pipeline": __version__, **chosen}


def verify_run(
    run: RunFolder,
    images: int = 1000,
    formats: Sequence[str] = tuple(FORMATS),
    precisions: Sequence[str] = PRECISIONS,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Compare every artefact with its program and write verify.json. Returns the report.

    `images` test images, or as many as there are, and some made ones go through every layer; final
    outputs, accuracy and decisions are over the whole test set. A layer that cannot be mapped, a
    NaN, a wrong shape or dtype and a runtime that is missing are failures. Raises UsageError,
    Missing or BadInput.
    """
    if images < 1:
        raise UsageError(f"--images {images}", "give 1 or more")
    config = verify_config(images, formats, precisions, seed)
    dataset = dataset_of(run)
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
    report = report_of(dataset, artefacts, scores, observer) | {
        "cases": {case.name: len(case.pixels) for case in cases}
    }
    with run.workspace() as work:
        (work / REPORT).write_text(json.dumps(report, indent=1) + "\n")
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
            self.artefact.error = first_line(error)

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
            whole = shipped.run(batch.numpy())[0].astype(found[0].dtype)
            self.artefact.observer += compare(found[0], whole, self.contract.output, start)
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
