"""int16x8: from a float program and images to a program with int16 values and int8 weights.

65,536 steps have room for all values that calibration saw: their range is its smallest and largest
value, and nothing is tried.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from .. import __version__
from ..data import dataset_of
from ..errors import BadInput
from ..program import capture, constant, decomposed, load, saved
from ..run_folder import RunFolder
from .calibration import calibrated
from .choice import Calibration
from .rules_int16 import Int16x8Quantizer

PRECISION = "int16x8"
LARGEST = 2**31 - 2**7  # of a bias in the program, whose float32 arithmetic has 24 bits


def quantize_int16x8(program: fx.GraphModule, pixels: Tensor) -> fx.GraphModule:
    """The int16x8 program of a float program, calibrated on uint8 N x C x H x W training images.

    Raises BadInput for an operator without a rule, and for a bias that has no integer.
    """
    module = calibrated(program, pixels, Int16x8Quantizer())
    for node in module.graph.nodes:
        if node.target is decomposed.quantize_per_channel.default and node.args[-1] is torch.int32:
            bias, scale = (constant(module, argument) for argument in node.args[:2])
            if (bias.double() / scale.double()).abs().max() > LARGEST:
                raise BadInput(
                    f"{PRECISION}: a bias of {node.args[0]} is more than 2^31 times the scale of "
                    "its input times weight",
                    "give --precision int8, or take the weights out that are nearly zero",
                )
    return module


def store_int16x8(run: RunFolder) -> bool:
    """Make a run's int16x8 program. Returns whether it was made now (else it was current).

    Raises Missing or BadInput.
    """
    source, target = run.artefact("fp32", "pt2"), run.artefact(PRECISION, "pt2")
    path, config = run.need(source), {"pipeline": __version__}
    if not run.wants(target, config=config):
        return False
    pixels = Calibration().images(dataset_of(run).train)
    module = quantize_int16x8(load(path), pixels)
    with run.workspace() as work:
        (work / target).write_bytes(saved(capture(module, run.input_shape)))
        run.commit({target: work / target}, config, [source])
    return True
