"""Export: the saved programs of a run to the files that runtimes read, each with its contract."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import fx

from deploy.runner.contract import PRECISIONS, Contract, Quantization

from .. import __version__, program
from ..run_folder import RunFolder
from . import onnx, tflite

# A format is a function (module, contract, path, taps) that writes one file.
FORMATS: dict[str, Callable[[fx.GraphModule, Contract, Path, tuple[str, ...]], None]] = {
    "onnx": onnx.export,
    "tflite": tflite.export,
}


def contract_of(run: RunFolder, module: fx.GraphModule, precision: str) -> Contract:
    """The contract of a run's program in this precision; scales are read off the program."""
    training = run.training
    source = final = program.output_node(module)
    if program.is_dequantize(final):
        source = final.args[0].args[0]  # type: ignore[union-attr,assignment]
    probabilities = source.target is program.aten.softmax.int
    first = next((node for node in module.graph.nodes if program.is_quantize(node)), None)
    return Contract(
        model=run.model,
        precision=precision,
        dataset=training["dataset_name"],
        labels=tuple(training["labels"]),
        input_shape=run.input_shape,
        preparation=training["preparation"],
        scores="probabilities" if probabilities else "logits",
        input=Quantization(*program.quantization_of(module, first)) if first else None,
        output=Quantization(*program.quantization_of(module, final)) if first else None,
        program_sha256=run.entry(run.artefact(precision, "pt2"))["sha256"],
        pipeline_version=__version__,
    )


def export_run(
    run: RunFolder, formats: Sequence[str] = tuple(FORMATS), precisions: Sequence[str] = PRECISIONS
) -> dict[str, bool]:
    """Export a run's programs. Returns file name to whether it was made now (else it was current).

    Quantizes first where int8 is asked for and there is no int8 program. Raises BadInput where an
    exporter refuses the network.
    """
    from ..quantize import quantize_run

    made: dict[str, bool] = {}
    config: dict[str, Any] = {"pipeline": __version__}
    for precision in precisions:
        source = run.artefact(precision, "pt2")
        if precision == "int8" and source not in run.record["artefacts"]:
            quantize_run(run)
        module = program.load(run.need(source))
        contract = contract_of(run, module, precision)
        for name in formats:
            filename = run.artefact(precision, name)
            made[filename] = not run.is_current(filename, config)
            if made[filename]:
                with run.workspace() as work:
                    FORMATS[name](module, contract, work / filename, ())
                    run.commit({filename: work / filename}, config, [source])
    return made
