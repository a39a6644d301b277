"""How much each layer of the int8 program costs: quantized alone, all else in float."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from typing import Any

from torch import Tensor, fx

from . import __version__, program
from .data import dataset_of
from .program import decomposed
from .run_folder import RunFolder

SENSITIVITY = "sensitivity.json"
INPUT = "input"
QUANTIZE = {
    decomposed.quantize_per_tensor.default,
    decomposed.quantize_per_channel.default,
}


def layer_of(node: fx.Node) -> str:
    """The layer whose value, weights or bias a quantize node quantizes: an activation's is named by
    what makes it, a weight's by where its result is quantized.
    """
    source = node.args[0]
    assert isinstance(source, fx.Node)
    if program.is_quantize(node) and source.op == "call_function":
        return source.name
    if source.op == "placeholder":
        return INPUT
    following = node
    while not (program.is_quantize(following) and following is not node):
        following = next(iter(following.users))
    return layer_of(following)


def alone(module: fx.GraphModule, layer: str) -> fx.GraphModule:
    """A copy of an int8 program in which only this layer's values and weights are rounded."""
    module = copy.deepcopy(module)
    for node in list(module.graph.nodes):
        if node.target in QUANTIZE and layer_of(node) != layer:
            for user in list(node.users):
                user.replace_all_uses_with(node.args[0])
    module.graph.eliminate_dead_code()
    module.recompile()
    return module


def layers_of(module: fx.GraphModule) -> list[str]:
    """Every name that `layer_of` gives, in program order."""
    nodes = (node for node in module.graph.nodes if node.target in QUANTIZE)
    return list(dict.fromkeys(layer_of(node) for node in nodes if program.is_quantize(node)))


def ratio(exact: Tensor, found: Tensor) -> float | None:
    """Signal to quantization noise in dB: 10 log10 of the powers; None without any noise."""
    noise = float((exact - found).double().square().sum())
    return 10 * math.log10(float(exact.double().square().sum()) / noise) if noise else None


def sensitivity_run(
    run: RunFolder, on_step: Callable[[str], None] = lambda _: None
) -> dict[str, Any]:
    """Each layer quantized alone, on the validation images: accuracy, and the outputs' SQNR in dB.

    Saved as sensitivity.json, most sensitive layer first. Raises Missing or BadInput.
    """
    source = run.artefact("int8", "pt2")
    int8, exact = (
        program.load(run.need(run.artefact(precision, "pt2"))) for precision in ("int8", "fp32")
    )
    validation = dataset_of(run).validation
    images, labels = validation.images, validation.labels
    wanted = program.run(exact, images)[0]

    def row(name: str, module: fx.GraphModule) -> dict[str, Any]:
        on_step(name)
        scores = program.run(module, images)[0]
        accuracy = program.accuracy(scores, labels)
        flips = int((scores.argmax(1) != wanted.argmax(1)).sum())
        return {
            "layer": name,
            "accuracy": accuracy,
            "flips": flips,
            "sqnr_db": ratio(wanted, scores),
        }

    rows = [row(name, alone(int8, name)) for name in layers_of(int8)]
    report = {
        "images": len(images),
        "fp32": program.accuracy(wanted, labels),
        "int8": row("all", int8),
        "layers": sorted(rows, key=lambda r: math.inf if r["sqnr_db"] is None else r["sqnr_db"]),
    }
    with run.workspace() as work:
        (work / SENSITIVITY).write_text(json.dumps(report, indent=1, allow_nan=False) + "\n")
        run.commit({SENSITIVITY: work / SENSITIVITY}, {"pipeline": __version__}, [source])
    return report
