"""Quantization-aware training: the float weights learn to live with int8's rounding.

Every value is rounded on the way forward and passed through on the way back (Jacob et al. 2018,
"Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference"), by
the very rules of `rules.py`; what comes out is an int8 program like any other.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torchao.quantization.pt2e import (
    FakeQuantize,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    disable_observer,
)
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_qat_pt2e
from torchao.quantization.pt2e.quantizer import QuantizationSpec

from .. import __version__
from ..data import Dataset, Split, dataset_of
from ..distortion import ELASTIC, distort
from ..errors import BadInput, UsageError, VerificationFailed
from ..program import capture, load, plain, run, saved
from ..run_folder import RunFolder
from ..train import EASED
from .measure import measured
from .observers import SMALLEST_SCALE
from .rules import FOLDED, Int8Quantizer

BATCH = 128
CALIBRATION = 1000  # training images that set the first ranges

ACTIVATION = QuantizationSpec(
    torch.int8,
    FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, eps=SMALLEST_SCALE),
    -128,
    127,
    torch.per_tensor_affine,
)
WEIGHT = QuantizationSpec(
    torch.int8,
    # The range is that of the weights as they are, not of what they were.
    FakeQuantize.with_args(
        observer=MovingAveragePerChannelMinMaxObserver,
        averaging_constant=1.0,
        ch_axis=0,
        eps=SMALLEST_SCALE,
    ),
    -127,
    127,
    torch.per_channel_symmetric,
    ch_axis=0,
)


@dataclass(frozen=True)
class FineTuning:
    """Of a trained network: few epochs, a low learning rate, falling to nothing as a cosine."""

    epochs: int = 3
    learning_rate: float = 2e-4
    seed: int = 0


OnEpoch = Callable[[int, dict[str, Any]], None]


def train_int8(
    program: fx.GraphModule,
    dataset: Dataset,
    tuning: FineTuning,
    distorted: float,
    on_epoch: OnEpoch = lambda *_: None,
) -> tuple[fx.GraphModule, list[dict[str, Any]]]:
    """The int8 program of the epoch that did best on validation images, none among them, and what
    each one did.

    `distorted` is how much training images are distorted, 0 not at all. Raises BadInput for what
    has no int8 form or a batch normalization, VerificationFailed where the loss is not finite.
    """
    if any(node.target in FOLDED for node in program.graph.nodes):
        raise BadInput(
            "training in int8 knows no batch normalization",
            "quantize the trained network: 'pipeline quantize'",
        )
    wanted = run(program, dataset.validation.images)[0]
    quantizer = Int8Quantizer(ACTIVATION, WEIGHT)
    network = plain(prepare_qat_pt2e(copy.deepcopy(program), quantizer))
    torch.manual_seed(tuning.seed)
    with torch.no_grad():  # before a step is taken the ranges are those of the float network
        network(dataset.train.images[:CALIBRATION].float() / 255)
    optimizer = torch.optim.Adam(network.parameters(), lr=tuning.learning_rate)
    best, most, number = program, 0.0, 0
    tried: list[dict[str, Any]] = []
    for epoch in range(tuning.epochs + 1):  # the first is none: it must be better than that
        if epoch == tuning.epochs:
            network.apply(disable_observer)  # the last one learns with the ranges that ship
        if epoch:
            _epoch(network, dataset.train, optimizer, epoch, tuning, distorted)
        int8 = plain(convert_pt2e(copy.deepcopy(network), fold_quantize=False))
        entry = {"observer": f"{epoch} epochs of training", "bias_correction": False}
        tried.append(entry | {"chosen": False} | measured(int8, wanted, dataset.validation))
        if tried[-1]["accuracy"] >= most:  # of equals the one that has learned more
            best, most, number = int8, tried[-1]["accuracy"], epoch
        on_epoch(epoch, tried[-1])
    tried[number]["chosen"] = True
    return best, tried


def _epoch(
    network: nn.Module,
    data: Split,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    tuning: FineTuning,
    distorted: float,
) -> None:
    batches = torch.randperm(len(data)).split(BATCH)
    for number, batch in enumerate(batches):
        done = (epoch - 1 + number / len(batches)) / tuning.epochs
        for group in optimizer.param_groups:
            group["lr"] = tuning.learning_rate * (1 + math.cos(math.pi * done)) / 2
        images: Tensor = data.images[batch].float() / 255
        if distorted:
            images = distort(images, distorted, distorted * ELASTIC)
        loss = nn.functional.cross_entropy(network(images)[0], data.labels[batch])
        if not bool(loss.isfinite()):
            raise VerificationFailed(
                f"training in int8 diverged in epoch {epoch}; the int8 program is as it was",
                f"give a smaller --lr than {tuning.learning_rate:g}",
            )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def qat_run(
    run_folder: RunFolder, tuning: FineTuning, on_epoch: OnEpoch = lambda *_: None
) -> list[dict[str, Any]]:
    """Replace a run's int8 program by one that was trained in int8, from its float program. Returns
    what each epoch did on validation images; run.json keeps it, and `pipeline quantize` goes back.

    Raises UsageError, Missing, and the errors of `train_int8`.
    """
    if tuning.epochs < 1:
        raise UsageError(f"--epochs {tuning.epochs}", "give 1 or more")
    if not 0 < tuning.learning_rate < math.inf:
        raise UsageError(f"--lr {tuning.learning_rate:g}", "give a number above 0")
    source, target = run_folder.artefact("fp32", "pt2"), run_folder.artefact("int8", "pt2")
    path = run_folder.need(source)
    if not run_folder.wants(target):
        return []
    config = run_folder.training["config"]
    distorted = config["distortion"] * EASED if config["augment"] else 0.0  # as training ended
    program = load(path)
    dataset = dataset_of(run_folder)
    int8, tried = train_int8(program, dataset, tuning, distorted, on_epoch)
    with run_folder.workspace() as work:
        (work / target).write_bytes(saved(capture(int8, run_folder.input_shape)))
        made = {"qat": asdict(tuning), "pipeline": __version__}
        run_folder.commit({target: work / target}, made, [source], {"tried": tried})
    return tried
