"""Two or more model files from anywhere, compared: the first ONNX file is the reference."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from deploy.runner.contract import Quantization

from ..errors import BadInput, Missing, UsageError
from . import onnx_file, tflite_file
from .cases import Case, made_cases
from .compiler import LIBRARY, Sources
from .evidence import machine
from .laboratory import BATCH, Laboratory
from .onnx_file import OnnxFile
from .report import absent_of, artefact_record, worst_of
from .runtimes import JUDGED, Runtimes, kind_of, lacks

KINDS = (".onnx", ".tflite", ".so", "a folder of generated C")
PARSERS: dict[str, Callable[[bytes, str], Any]] = {
    "onnx": onnx_file.parse,
    "tflite": tflite_file.parse,
}


def verify_files(
    paths: Sequence[Path],
    images: int,
    seed: int,
    require: Sequence[str] = (),
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Judge files of one network layer by layer, on `images` random images and some made ones.

    The layers are those of the first ONNX file; the others must have the same ones, in order and
    kind. Values are in [0, 1], or int8 where the files take int8. Raises Missing, BadInput.
    """
    contents: dict[str, bytes | Sources] = {}
    for path in paths:
        generated = (path / "Makefile").is_file()
        name = str(path / LIBRARY) if generated else str(path)
        if kind_of(name) == "":
            raise BadInput(f"{path}: not a model file", f"give {', '.join(KINDS)}")
        if not (path.is_file() or generated):
            raise Missing(f"{path}: no such file")
        if name in contents:
            raise UsageError(f"{path} is given twice", "give two different files")
        contents[name] = Sources.of(path) if generated else path.read_bytes()
    first = next((path for path in paths if path.suffix == OnnxFile.suffix), None)
    if first is None:
        raise UsageError("no ONNX file among them", "give one: the reference is read from it")
    for name, content in contents.items():  # what cannot be read is said before anything runs
        if isinstance(content, bytes) and kind_of(name) in PARSERS:
            PARSERS[kind_of(name)](content, name)
    reference = OnnxFile(first.read_bytes(), str(first))
    network = reference.network
    if len(network.image_shape) != 3 or min(network.image_shape) < 1:
        raise BadInput(f"{first}: the input is {network.image_shape}, not C x H x W of fixed size")
    if network.image_quantization and not _is_byte(network.image_quantization):
        raise BadInput(
            f"{first}: its image is quantized as {network.image_quantization}",
            "only images of bytes, scale 1/255 and zero point -128, are known",
        )
    generator = torch.Generator().manual_seed(seed)
    shape = (images, *network.image_shape)
    random = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    cases = [Case("random", random), *made_cases(network.image_shape, seed)]
    pixels = torch.cat([case.pixels for case in cases]).numpy()
    precision = "int8" if network.quantized else "fp32"
    if any(isinstance(content, Sources) for content in contents.values()):
        require = tuple(dict.fromkeys((*require, "c")))  # what is asked for is not skipped
    with Runtimes() as runtimes:
        laboratory = Laboratory(reference, contents, precision, runtimes, require, seed, on_step)
        laboratory.judge(pixels, pixels[:BATCH], None)
    subjects = laboratory.subjects
    absent = absent_of(subjects, require)
    configurations = [c for n, f in contents.items() for c in JUDGED[kind_of(n)] if lacks(c, f)]
    return {
        "passed": all(subject.passed for subject in subjects) and not absent,
        "reference": str(first),
        "required": list(require),
        "absent": absent,
        "skipped": sorted({c.runtime for c in configurations} - set(require)),
        "machine": machine(),
        "artefacts": [artefact_record(subject) for subject in subjects],
        "varied": laboratory.varied,
        "worst": worst_of(subjects),
        "cases": {case.name: len(case.pixels) for case in cases},
        "seed": seed,
        "sha256": {name: _digest(content) for name, content in contents.items()},
    }


def _is_byte(quantization: Quantization | None) -> bool:
    return quantization is not None and quantization == Quantization(
        float(np.float32(1 / 255)), -128
    )


def _digest(content: bytes | Sources) -> str:
    return content.digest if isinstance(content, Sources) else hashlib.sha256(content).hexdigest()
