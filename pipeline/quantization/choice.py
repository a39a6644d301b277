"""Which int8 program a run gets: of those asked for, the best on the validation images."""

from __future__ import annotations

import itertools
import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx

from .. import __version__
from ..data import Split, dataset_of
from ..errors import UsageError, unknown
from ..program import accuracy, capture, load, run, saved
from ..run_folder import RunFolder
from .calibration import quantize
from .observers import OBSERVERS

AUTO = "auto"


@dataclass(frozen=True)
class Calibration:
    """How the int8 program is made: from `size` training images, all if there are fewer.

    `observer` is one of OBSERVERS, or auto: each is tried. `bias_correction` None is auto, too.
    Auto is the default, since no observer is best for all: of lenet5 (digits, MNIST) and
    lenet5-classic (digits), seed 0, minmax, minmax and percentile came nearest to fp32 on
    validation images, each with bias correction, 0.4 to 2.6 dB nearer than plain minmax.
    """

    size: int = 1000
    seed: int = 0
    observer: str = AUTO
    bias_correction: bool | None = None

    def images(self, train: Split) -> Tensor:
        """The chosen training images, uint8 N x C x H x W."""
        generator = torch.Generator().manual_seed(self.seed)
        return train.images[torch.randperm(len(train), generator=generator)[: self.size]]

    def candidates(self) -> list[tuple[str, bool]]:
        """What is to be tried, (observer, bias correction), from the simplest on."""
        observers = list(OBSERVERS) if self.observer == AUTO else [self.observer]
        given = self.bias_correction
        return list(itertools.product(observers, [False, True] if given is None else [given]))


def sqnr(wanted: Tensor, found: Tensor) -> float:
    """Signal to quantization noise of `found` in dB, infinite without noise: 10 log10(S / N)."""
    noise = float((found - wanted).double().square().sum())
    signal = float(wanted.double().square().sum())
    return 10 * math.log10(signal / noise) if noise and signal else math.inf


def measured(int8: fx.GraphModule, wanted: Tensor, data: Split) -> dict[str, Any]:
    """Accuracy on the images, answers other than the float program's, and the outputs' SQNR."""
    scores = run(int8, data.images)[0]
    ratio = sqnr(wanted, scores)
    return {
        "accuracy": accuracy(scores, data.labels),
        "flips": int((scores.argmax(1) != wanted.argmax(1)).sum()),
        "sqnr_db": ratio if math.isfinite(ratio) else None,
    }


def rank(tried: dict[str, Any]) -> tuple[float, float]:
    """The best has the largest: validation accuracy, then nearness to the float program."""
    ratio = tried["sqnr_db"]
    return tried["accuracy"], math.inf if ratio is None else ratio


def choose(
    program: fx.GraphModule, pixels: Tensor, validation: Split, calibration: Calibration
) -> tuple[fx.GraphModule, list[dict[str, Any]]]:
    """The best int8 program, and what was tried, the chosen one marked. Raises BadInput."""
    wanted = run(program, validation.images)[0]
    tried: list[dict[str, Any]] = []
    best: fx.GraphModule | None = None
    for observer, correction in calibration.candidates():
        int8 = quantize(program, pixels, observer, bias_correction=correction)
        entry = {"observer": observer, "bias_correction": correction, "chosen": False}
        tried.append(entry | measured(int8, wanted, validation))
        if best is None or max(tried, key=rank) is tried[-1]:
            best = int8
    assert best is not None
    max(tried, key=rank)["chosen"] = True
    return best, tried


def is_trained(run: RunFolder) -> bool:
    """Whether the int8 program was trained, see `training.py`, and not calibrated."""
    entry = run.record["artefacts"].get(run.artefact("int8", "pt2"))
    return entry is not None and "qat" in entry["config"]


def quantize_run(run: RunFolder, calibration: Calibration | None = None) -> bool:
    """Make a run's int8 program. Returns whether it was made now (else it was current).

    Without `calibration` the settings of the int8 program that is there are kept, and one that was
    trained is left as it is while its float program is. Calibrates on training images and chooses
    by validation images, never by test images. What was tried is kept in run.json. Raises
    UsageError, Missing or BadInput.
    """
    source, target = run.artefact("fp32", "pt2"), run.artefact("int8", "pt2")
    if calibration is None:
        if is_trained(run) and run.is_current(target, run.entry(target)["config"]):
            return False
        known = run.record["artefacts"].get(target, {}).get("config", {})
        names = asdict(Calibration())
        calibration = Calibration(**{key: known[key] for key in names if key in known})
    if calibration.size < 1:
        raise UsageError(f"--calibration-size {calibration.size}", "give 1 or more")
    if calibration.observer not in (AUTO, *OBSERVERS):
        raise unknown("observer", calibration.observer, [AUTO, *OBSERVERS])
    config = asdict(calibration) | {"pipeline": __version__}
    path = run.need(source)
    if not run.wants(target, config=config):
        return False
    module = load(path)
    dataset = dataset_of(run)
    pixels = calibration.images(dataset.train)
    int8, tried = choose(module, pixels, dataset.validation, calibration)
    with run.workspace() as work:
        (work / target).write_bytes(saved(capture(int8, run.input_shape)))
        run.commit({target: work / target}, config, [source], {"tried": tried})
    return True
