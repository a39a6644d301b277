"""Export: the saved programs of a run to the files that runtimes read, each with its contract."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from torch import fx

from deploy.runner.contract import Contract, Quantization

from .. import __version__, program
from ..errors import BadInput, Missing, UsageError
from ..files import replace_folder
from ..precisions import FORMATS, INTEGERS, SMALL_WEIGHTS, USUAL
from ..run_exports import exports_of
from ..run_folder import NEW, RunFolder
from . import onnx, tflite
from .c import Generated, digest, generate, write

# An exporter is a function (module, contract, path, taps) that writes one file.
EXPORTERS: dict[str, Callable[[fx.GraphModule, Contract, Path, tuple[str, ...]], None]] = {
    "onnx": onnx.export,
    "tflite": tflite.export,
}
BUILT = ("*.o", "*classify", "*libmodel.so", "fuzz-*")  # what make leaves in a folder of C


CALIBRATION = "calibration.json"


def temperature_of(run: RunFolder, precision: str) -> float:
    """What `pipeline calibrate` found for this very program; 1 where it has not run since."""
    entry = run.record["artefacts"].get(CALIBRATION)
    program_name = run.artefact(precision, "pt2")
    if entry is None or entry["inputs"].get(program_name) != run.entry(program_name)["sha256"]:
        return 1.0
    return float(entry["facts"][precision])


def contract_of(run: RunFolder, module: fx.GraphModule, precision: str) -> Contract:
    """The contract of a run's program in this precision; scales are read off the program."""
    training = run.training
    source = final = program.output_node(module)
    if program.is_dequantize(final):
        source = final.args[0].args[0]  # type: ignore[union-attr,assignment]
    probabilities = source.target is program.aten.softmax.int
    first = next((node for node in module.graph.nodes if program.is_quantize(node)), None)
    dtype = INTEGERS.get(precision, "")
    return Contract(
        model=run.model,
        precision=precision,
        dataset=training["dataset_name"],
        labels=tuple(training["labels"]),
        input_shape=run.input_shape,
        preparation=training["preparation"],
        scores="probabilities" if probabilities else "logits",
        input=Quantization(*program.quantization_of(module, first), dtype) if first else None,
        output=Quantization(*program.quantization_of(module, final), dtype)
        if source != final
        else None,
        program_sha256=run.entry(run.artefact(precision, "pt2"))["sha256"],
        pipeline_version=__version__,
        temperature=temperature_of(run, precision),
    )


def carried(run: RunFolder, contract: Contract, kind: str) -> Contract:
    """The contract of this precision as the exported file has it, made before or after
    `pipeline calibrate` found what holds now.
    """
    source = run.artefact(contract.precision, "onnx" if kind == "c" else kind)  # C is made of ONNX
    return replace(contract, temperature=run.entry(source)["config"].get("temperature", 1.0))


def export_run(
    run: RunFolder, formats: Sequence[str] = FORMATS, precisions: Sequence[str] = USUAL
) -> dict[str, bool]:
    """Export a run's programs. Returns file name to whether it was made now (else it was current).

    Makes a precision's program first where there is none; all but fp32 and int8 are made anew when
    they are not current. C is generated from the ONNX file. Raises BadInput where an exporter
    refuses the network.
    """
    from ..quantization import quantize_run, store_int16x8, store_small

    made: dict[str, bool] = {}
    exports_of(run, formats, precisions)  # refuses before anything is made
    for precision in precisions:
        source = run.artefact(precision, "pt2")
        if precision == "int8" and source not in run.record["artefacts"]:
            quantize_run(run)
        if precision in SMALL_WEIGHTS:
            store_small(run, precision)
        if precision == "int16x8":
            store_int16x8(run)
        files = exports_of(run, formats, [precision])
        if run.plan is not None and run.plan.get(source) == NEW:  # nothing is known of it yet
            run.wants(*(run.artefact(*file) for file in files))
            continue
        module = program.load(run.need(source))
        contract = contract_of(run, module, precision)
        config: dict[str, Any] = {"pipeline": __version__}
        if contract.temperature != 1.0:
            config["temperature"] = contract.temperature
        for _, name in files:
            if name not in EXPORTERS:
                made = export_run(run, ("onnx",), (precision,)) | made
                made |= _generated(run, precision, name)
                continue
            filename = run.artefact(precision, name)
            made[filename] = run.wants(filename, config=config)
            if made[filename]:
                with run.workspace() as work:
                    EXPORTERS[name](module, contract, work / filename, ())
                    run.commit({filename: work / filename}, config, [source])
    return made


def export_file(path: Path, folder: Path, overwrite: bool = False) -> Generated:
    """Generate C from any ONNX file into `folder`, whole or not at all.

    Raises Missing or BadInput for the file, UsageError for a folder that has something else in it,
    or an older export without `overwrite`.
    """
    if not path.is_file():
        raise Missing(f"{path}: no such file", "give an ONNX file")
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder}: there is a file of that name", "give a new folder with -o")
    generated = generate(path.read_bytes(), path.name)
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if not p.is_dir()}
    for name in sorted(found - set(generated.files)):
        if not any(fnmatch(name, pattern) for pattern in BUILT):
            raise UsageError(f"{folder}: {name} is not of an export", "give a new folder with -o")
    if found and not overwrite:
        raise UsageError(f"{folder}: there is C already", "give --overwrite to replace it")
    place = folder.resolve()
    work = place.with_name(f".{place.name}.{secrets.token_hex(4)}.tmp")
    try:
        work.mkdir(parents=True)
        write(generated, work)
        replace_folder(work, place)
    except OSError as error:
        raise BadInput(
            f"{folder}: cannot be written ({error.strerror or error})", "give another folder"
        ) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return generated


def _generated(run: RunFolder, precision: str, name: str) -> dict[str, bool]:
    """The folder of C, generated from the run's ONNX file."""
    source, filename = run.artefact(precision, "onnx"), run.artefact(precision, name)
    config = {"pipeline": __version__, "generator": digest()}
    wanted = run.wants(filename, config=config)
    if wanted:
        generated = generate(run.need(source).read_bytes(), source)
        with run.workspace() as work:
            (work / filename).mkdir()
            write(generated, work / filename)
            facts = {"arena": generated.arena, "peak": generated.peak, "optimum": generated.optimum}
            run.commit({filename: work / filename}, config, [source], facts)
    return {filename: wanted}
