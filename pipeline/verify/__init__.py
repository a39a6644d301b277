"""Verify: the very files and the very runner that ship, layer by layer, against the reference.

The reference (`pipeline.reference`) executes a run's ONNX graph in NumPy. Every runtime, and the
PyTorch program that all files were exported from, is judged against it: float32 by derived bounds
(`bounds`), int8 by the rounding schemes that reproduce it bit for bit (`rounding`).
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import torch
from torch import Tensor, fx

from deploy.runner.backends import as_input

from .. import __version__, program
from ..data import dataset_of
from ..errors import UsageError
from ..export import EXPORTERS, contract_of, export_run
from ..precisions import FORMATS, INTEGERS, LACKING, PRECISIONS, USUAL
from ..run_exports import exports_of
from ..run_folder import RunFolder
from .cases import cases_for
from .compiler import Sources
from .judge import against_bound, bounded
from .laboratory import BATCH, Laboratory, Opened
from .layers import IMAGE, Network
from .onnx_file import OnnxFile
from .report import Finals, report_of
from .runtimes import JUDGED, Runtimes, missing
from .subject import Subject, integers, named

Array = npt.NDArray[Any]

REPORT = "verify.json"
PROGRAM = "pytorch"
REFERENCE = "reference"
FLOAT64 = 2.0**-28  # of a float32 bound: what float64 may be off by, with a bit to spare


def verify_config(
    images: int,
    formats: Sequence[str],
    precisions: Sequence[str],
    seed: int = 0,
    require: Sequence[str] = (),
) -> dict[str, Any]:
    """What run.json keeps to tell whether verifying again would say the same."""
    chosen = {"formats": sorted(formats), "precisions": sorted(precisions)}
    return {"images": images, "seed": seed, "pipeline": __version__, **chosen} | (
        {"require": sorted(require)} if require else {}
    )


def verify_run(
    run: RunFolder,
    images: int = 1000,
    formats: Sequence[str] = FORMATS,
    precisions: Sequence[str] = USUAL,
    seed: int = 0,
    require: Sequence[str] = (),
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Judge every artefact of a run in every runtime and write verify.json. Returns the report.

    `images` test images, or as many as there are, and some made ones go through every layer; final
    outputs, accuracy and decisions are over the whole test set. A layer that cannot be mapped, a
    NaN, a wrong shape or dtype and a runtime of `require` that is missing are failures. A dry run
    returns nothing. Raises UsageError, Missing or BadInput.
    """
    if images < 1:
        raise UsageError(f"--images {images}", "give 1 or more")
    dataset = dataset_of(run)
    files = run_files(run, formats, precisions)
    for file in files:
        run.need(file)
    # The reference is read from it; where none ships, from one that is made for the occasion.
    export_run(run, ("onnx",), [p for p in precisions if (p, "onnx") not in LACKING])
    if not run.wants(REPORT):
        return {}
    cases = cases_for(dataset, images, seed)
    pixels = torch.cat([case.pixels for case in cases])
    scores: dict[str, Tensor] = {}
    subjects: list[Subject] = []
    varied: list[dict[str, Any]] = []
    kinds = {kind for _, kind in exports_of(run, formats, precisions)}
    considered = [c for kind in FORMATS if kind in kinds for c in JUDGED[kind]]
    skipped = sorted({c.runtime for c in considered if missing(c)} - set(require))
    with Runtimes() as runtimes:
        for precision in PRECISIONS:
            if precision not in precisions and precision != "fp32":
                continue
            on_step(f"{precision}: the program in PyTorch")
            module = program.load(run.need(run.artefact(precision, "pt2")))
            scores[precision] = program.run(module, dataset.test.images)[0]
            if precision not in precisions:  # others are held to the float program's decisions
                continue
            laboratory = Laboratory(
                reference_of(run, precision, module),
                {name: content_of(run, name) for name in run_files(run, formats, [precision])},
                precision,
                runtimes,
                require,
                seed,
                on_step,
            )
            subject = laboratory.subject(run.artefact(precision, "pt2"), PROGRAM, False)
            subject.finals.append(scores[precision].numpy())
            if changed := changed_constants(module, laboratory.network):
                name = run.artefact(precision, "onnx")
                subject.error = f"{name} has other float weights in {', '.join(changed)}"
            if precision not in INTEGERS:
                name = run.artefact(precision, "onnx")
                graph = laboratory.subject(name, REFERENCE, False)
                some = torch.cat([pixels[:BATCH], pixels[-BATCH:]]).numpy()
                judge_reference(graph, module, laboratory.network, some)
            laboratory.judge(
                pixels.numpy(),
                dataset.test.images[:BATCH].numpy(),
                dataset.test.images.numpy(),
                opened_program(subject, module, laboratory.network),
            )
            subjects += laboratory.subjects
            varied += laboratory.varied
    finals = Finals(dataset, scores)
    report = report_of(finals, subjects, varied, require, skipped) | {
        "run": run.name,
        "cases": {case.name: len(case.pixels) for case in cases},
        "seed": seed,
        "sha256": {
            "images": hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
            **{file: run.entry(file)["sha256"] for file in files},
        },
    }
    config = verify_config(images, formats, precisions, seed, require)
    run.commit_json(REPORT, report, config, files, {"passed": report["passed"]})
    return report


def run_files(run: RunFolder, formats: Sequence[str], precisions: Sequence[str]) -> list[str]:
    """The names of a run's artefacts in these formats."""
    return [run.artefact(*file) for file in exports_of(run, formats, precisions)]


def content_of(run: RunFolder, name: str) -> bytes | Sources:
    """A file's content; where the artefact is a folder of C, that. Raises Missing, BadInput."""
    path = run.need(name)
    files = run.entry(name).get("files")
    return path.read_bytes() if files is None else Sources(path, tuple(files))


def reference_of(run: RunFolder, precision: str, module: fx.GraphModule) -> OnnxFile:
    """A run's ONNX file of this precision, cut into the layers of its program. Where none ships, it
    is made for this alone.
    """
    name = run.artefact(precision, "onnx")
    last, *taps = program.with_taps(module)[1]
    names = [(tap.layer, tap.kind) for tap in (*taps, last)]
    if (precision, "onnx") not in LACKING:
        return OnnxFile(run.need(name).read_bytes(), name, names)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / name
        EXPORTERS["onnx"](module, contract_of(run, module, precision), path, ())
        return OnnxFile(path.read_bytes(), name, names)


def judge_reference(
    subject: Subject, module: fx.GraphModule, network: Network, pixels: Array
) -> None:
    """The float ONNX graph against its program, both in float64, where next to nothing may differ.

    A weight that an exporter, or a hand, has changed is found here, whatever float32 would hide;
    only of normalisations that were merged into float32 weights more is allowed.
    """
    tapped = program.with_taps(program.unpacked(module))[0].double()
    subject.runtime = "the graph in float64"
    for start in range(0, len(pixels), BATCH):
        image = as_input(pixels[start : start + BATCH], np.dtype(np.float32)).astype(np.float64)
        with torch.inference_mode():
            final, *rest = (value.numpy() for value in tapped(torch.from_numpy(image)))
        values = {IMAGE: image} | named(network, [*rest, final][: len(network.layers)])
        subject.observed += final.size
        for verdict in subject.layers:
            layer = verdict.layer
            exact = bounded(layer, network, {name: values[name] for name in layer.inputs})
            share = 1.0 if "batch norm" in layer.kind else FLOAT64
            exact = exact._replace(error=exact.error * share, likely=exact.likely * share)
            verdict.in_place += against_bound(exact, values[layer.name], start)


def changed_constants(module: fx.GraphModule, network: Network) -> list[str]:
    """The layers of an int8 program that stayed in float, and whose weights and biases are not, bit
    for bit, those of its ONNX graph. What a runtime rounds would hide some changes.
    """
    nodes = {node.name: node for node in module.graph.nodes}
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in network.model.graph.initializer}
    changed = []
    for layer in network.layers if network.quantized else ():
        inside = program.layer_nodes(nodes[layer.name])
        given = [source for node in inside for source in node.all_input_nodes]
        held = [stored[name] for node in layer.nodes for name in node.input if name in stored]
        for wanted in (program.attribute(module, g).detach() for g in given if g.op == "get_attr"):
            ways = (wanted.numpy(), wanted.numpy().T)
            if not any(np.array_equal(way, found) for way in ways for found in held):
                changed.append(layer.name)
    return changed


def opened_program(subject: Subject, module: fx.GraphModule, network: Network) -> Opened:
    """The program that all files were exported from, as one more runtime."""
    tapped = program.with_taps(module)[0]
    subject.runtime = f"{PROGRAM} {torch.__version__}"

    def whole(pixels: Array) -> Array:
        return np.asarray(program.run(module, torch.from_numpy(pixels))[0].numpy())

    def laid_open(pixels: Array) -> tuple[Array, dict[str, Array]]:
        final, *rest = (v.numpy() for v in program.run(tapped, torch.from_numpy(pixels)))
        values = [*rest, final][: len(network.layers)]  # without an output that is only moved
        return final, integers(network, named(network, values))

    return Opened(subject, whole, laid_open)
