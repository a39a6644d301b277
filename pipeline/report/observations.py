"""What the report shows that no stage has written down: the programs, watched on test images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import fx

from .. import program
from ..data import Dataset, dataset_of
from ..export import contract_of
from ..program import Tap
from ..run_folder import RunFolder

Array = npt.NDArray[Any]

WATCHED = 256  # test images whose layers' values are counted
BINS = 60


@dataclass(frozen=True)
class Answers:
    """What a program says of every test image: `probabilities` float64 N x classes."""

    probabilities: Array
    truth: Array

    @property
    def chosen(self) -> Array:
        """The classes that are answered, int64 N."""
        return np.asarray(self.probabilities.argmax(axis=1))

    @property
    def right(self) -> Array:
        """Whether each answer is the truth, bool N."""
        return np.asarray(self.chosen == self.truth)

    @property
    def confusion(self) -> Array:
        """How many images of a class (row) were given which answer, int64 classes x classes."""
        classes = self.probabilities.shape[1]
        counts = np.bincount(self.truth * classes + self.chosen, minlength=classes**2)
        return counts.reshape(classes, classes)

    def most_confidently_wrong(self, most: int) -> list[int]:
        """Indices of wrong answers, the one of the highest probability first."""
        sure = np.where(self.right, -1.0, self.probabilities.max(axis=1))
        return [int(i) for i in np.argsort(-sure, kind="stable")[:most] if not self.right[i]]


@dataclass(frozen=True)
class Histogram:
    """How often a layer's values fell between `edges`; `low` and `high` are what int8 can hold."""

    layer: str
    kind: str
    counts: Array
    edges: Array
    low: float | None
    high: float | None
    clipped: float  # the part of the values outside of low .. high


@dataclass(frozen=True)
class Observations:
    """`maps` are the layers' values of one image, by precision and layer, C x H x W or flat."""

    dataset: Dataset
    answers: dict[str, Answers]
    example: int
    maps: dict[str, dict[str, Array]]
    activations: list[Histogram]
    weights: dict[str, Array]

    @property
    def flips(self) -> list[int]:
        """Indices of the test images that the two precisions answer differently."""
        if set(self.answers) != {"fp32", "int8"}:
            return []
        differ = self.answers["fp32"].chosen != self.answers["int8"].chosen
        return [int(i) for i in np.flatnonzero(differ)]


def observe(run: RunFolder) -> Observations:
    """Run the run's programs on its test images. Raises Missing or BadInput for what is not there
    or not what was recorded.
    """
    dataset = dataset_of(run)
    programs = {"fp32": program.load(run.need(run.artefact("fp32", "pt2")))}
    if run.artefact("int8", "pt2") in run.record["artefacts"]:
        programs["int8"] = program.load(run.need(run.artefact("int8", "pt2")))
    answers = {name: _answers(run, module, name, dataset) for name, module in programs.items()}
    right = np.logical_and.reduce([each.right for each in answers.values()])
    example = int(np.argmax(right))  # the first that all answer rightly
    tapped = {name: program.with_taps(module) for name, module in programs.items()}
    image = dataset.test.images[example : example + 1]
    maps = {name: _maps(module, taps, image) for name, (module, taps) in tapped.items()}
    ranges = {tap.layer: tap for tap in tapped["int8"][1]} if "int8" in tapped else {}
    histograms = _histograms(*tapped["fp32"], dataset.test.images[:WATCHED], ranges)
    return Observations(dataset, answers, example, maps, histograms, _weights(programs["fp32"]))


def _answers(run: RunFolder, module: fx.GraphModule, precision: str, dataset: Dataset) -> Answers:
    from deploy.runner.scores import probabilities

    scores = program.run(module, dataset.test.images)[0].double().numpy()
    contract = contract_of(run, module, precision)
    return Answers(probabilities(scores, contract), dataset.test.labels.numpy())


def _maps(module: fx.GraphModule, taps: list[Tap], image: torch.Tensor) -> dict[str, Array]:
    last, *others = taps
    final, *values = program.run(module, image)
    found = {tap.layer: value[0].numpy() for tap, value in zip(others, values, strict=True)}
    return found | {last.layer: final[0].numpy()}


def _histograms(
    module: fx.GraphModule, taps: list[Tap], images: torch.Tensor, ranges: dict[str, Tap]
) -> list[Histogram]:
    values = program.run(module, images)
    last, *others = zip(taps, values, strict=True)
    found = []
    for tap, value in (*others, last):
        numbers = value.numpy().ravel()
        counts, edges = np.histogram(numbers, BINS)
        low = high = None
        clipped = 0.0
        known = ranges.get(tap.layer)
        if known is not None and known.scale is not None and known.zero_point is not None:
            low, high = (known.scale * (end - known.zero_point) for end in (-128, 127))
            half = known.scale / 2
            clipped = float(((numbers < low - half) | (numbers > high + half)).mean())
        found.append(Histogram(tap.layer, tap.kind, counts, edges, low, high, clipped))
    return found


def _weights(module: fx.GraphModule) -> dict[str, Array]:
    """Kernels and matrices by the layer that takes them, as trained."""
    trained = dict(module.named_parameters())
    return {
        user.name: trained[node.target].detach().numpy()
        for node in module.graph.nodes
        if node.op == "get_attr" and node.target in trained and trained[node.target].dim() > 1
        for user in node.users
    }
