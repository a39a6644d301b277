"""How much each layer of an int8 program costs: each quantized alone, the others in float, with the
ranges of the int8 program and no bias correction.
"""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, fx

from .. import __version__
from ..data import Split, dataset_of
from ..errors import BadInput
from ..program import MERGED, accuracy, decomposed, is_quantize, load, run, tap_nodes
from ..run_folder import RunFolder
from .calibration import quantize
from .choice import Calibration, is_trained, measured

SENSITIVITY = "sensitivity.json"


def sensitivity_run(folder: RunFolder) -> dict[str, Any]:
    """Measure a run's layers on its validation images, keep that as sensitivity.json, return it.

    A dry run returns nothing. Raises Missing or BadInput.
    """
    if is_trained(folder):
        raise BadInput(
            f"the int8 program of run {folder.name} was trained: no layer of it is quantized alone",
            f"run 'pipeline quantize --run {folder.name}' for one that is calibrated",
        )
    names = [folder.artefact(precision, "pt2") for precision in ("fp32", "int8")]
    paths = [folder.need(name) for name in names]
    if not folder.wants(SENSITIVITY):
        return {}
    program, int8 = (load(path) for path in paths)
    dataset, entry = dataset_of(folder), folder.entry(names[1])
    data = dataset.validation
    wanted = run(program, data.images)[0]
    # A corrected bias makes up for the rounding of layers that here are float: it has no place.
    chosen = next(each for each in entry["facts"]["tried"] if each["chosen"])
    calibration = Calibration(entry["config"]["size"], entry["config"]["seed"])
    plainly = quantize(program, calibration.images(dataset.train), chosen["observer"])
    record = {
        "images": len(data),
        "fp32": {"accuracy": accuracy(wanted, data.labels)},
        "int8": measured(int8, wanted, data),
        "layers": layers(plainly, wanted, data),
    }
    config = {"pipeline": __version__}
    folder.commit_json(SENSITIVITY, record, config, names, allow_nan=False)
    return record


def layers(int8: fx.GraphModule, wanted: Tensor, data: Split) -> list[dict[str, Any]]:
    """What `measured` tells of each layer of an int8 program quantized alone, in program order.

    `wanted` is what the float program computes, N x classes.
    """
    return [
        {"layer": tap.layer, "kind": tap.kind, **measured(alone(int8, tap.layer), wanted, data)}
        for tap in tap_nodes(int8)
    ]


def alone(int8: fx.GraphModule, layer: str) -> fx.GraphModule:
    """A copy in which only this layer's constants and its result are quantized."""
    module = copy.deepcopy(int8)
    for node in list(module.graph.nodes):
        constant = node.target is decomposed.quantize_per_channel.default
        if (constant or is_quantize(node)) and layer_of(node) != layer:
            for user in list(node.users):
                user.replace_all_uses_with(node.args[0])
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def layer_of(quantize: fx.Node) -> str:
    """The layer whose result, weights, bias or other constant a quantize node rounds."""
    source = quantize.args[0]
    assert isinstance(source, fx.Node)
    if source.op != "get_attr":
        return source.name
    (dequantize,) = quantize.users
    (node,) = dequantize.users
    while not any(is_quantize(user) for user in node.users):  # a ReLU is part of the layer
        (node,) = (user for user in node.users if user.target in MERGED)
    return node.name
