"""Verify: the very files and the very runner that ship, layer by layer, against the reference.

The reference (`pipeline.reference`) executes a run's ONNX graph in NumPy. Every runtime, and the
PyTorch program that all files were exported from, is judged against it: float32 by derived bounds
(`bounds`), int8 by the rounding schemes that reproduce it bit for bit (`rounding`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, fx

from deploy.runner.backends import Session, as_input
from deploy.runner.contract import PRECISIONS

from .. import __version__, program
from ..data import Dataset, dataset_of
from ..errors import UsageError, first_line
from ..export import FORMATS, export_run
from ..run_folder import RunFolder
from .cases import cases_for, isolated_inputs
from .layers import Network
from .onnx_file import OnnxFile
from .report import Finals, report_of
from .runtimes import JUDGED, VARIED, Configuration, Runtimes, missing, run_all
from .subject import (
    LayeredFile,
    LayerVerdict,
    Subject,
    integers,
    isolate,
    named,
    observe,
    reference_chain,
)
from .tflite_file import TfliteFile

Array = npt.NDArray[Any]

REPORT = "verify.json"
BATCH = 100  # images whose layers are in memory at once
PROGRAM = "pytorch"


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
    formats: Sequence[str] = tuple(FORMATS),
    precisions: Sequence[str] = PRECISIONS,
    seed: int = 0,
    require: Sequence[str] = (),
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Judge every artefact of a run in every runtime and write verify.json. Returns the report.

    `images` test images, or as many as there are, and some made ones go through every layer; final
    outputs, accuracy and decisions are over the whole test set. A layer that cannot be mapped, a
    NaN, a wrong shape or dtype and a runtime of `require` that is missing are failures. Raises
    UsageError, Missing or BadInput.
    """
    if images < 1:
        raise UsageError(f"--images {images}", "give 1 or more")
    dataset = dataset_of(run)
    files = [run.artefact(p, f) for p in precisions for f in formats]
    for file in files:
        run.need(file)
    export_run(run, ("onnx",), precisions)  # the reference is read from it
    cases = cases_for(dataset, images, seed)
    pixels = torch.cat([case.pixels for case in cases])
    scores: dict[str, Tensor] = {}
    subjects: list[Subject] = []
    varied: list[dict[str, Any]] = []
    considered = [c for f in formats for c in JUDGED[f]]
    skipped = sorted({c.runtime for c in considered if missing(c)} - set(require))
    with Runtimes() as runtimes:
        for precision in PRECISIONS:
            if precision not in precisions and precision != "fp32":
                continue
            on_step(f"{precision} program in PyTorch")
            module = program.load(run.need(run.artefact(precision, "pt2")))
            scores[precision] = program.run(module, dataset.test.images)[0]
            if precision not in precisions:  # int8 is held to the float program's decisions
                continue
            session = _Session(run, precision, formats, module, runtimes, require, seed, on_step)
            session.run_all(pixels, dataset)
            subjects += session.subjects
            varied += session.varied
    finals = Finals(dataset, scores)
    report = report_of(finals, subjects, varied, require, skipped) | {
        "cases": {case.name: len(case.pixels) for case in cases},
        "seed": seed,
        "sha256": {
            "images": hashlib.sha256(pixels.numpy().tobytes()).hexdigest(),
            **{file: run.entry(file)["sha256"] for file in files},
        },
    }
    config = verify_config(images, formats, precisions, seed, require)
    with run.workspace() as work:
        (work / REPORT).write_text(json.dumps(report, indent=1) + "\n")
        run.commit({REPORT: work / REPORT}, config, files, {"passed": report["passed"]})
    return report


@dataclass
class _Opened:
    """A subject with what runs it: `observe` gives (own output, every layer's value)."""

    subject: Subject
    whole: Callable[[Array], Array]
    observe: Callable[[Array], tuple[Array, dict[str, Array]]]


class _Session:
    """All runtimes of one precision, side by side."""

    def __init__(
        self,
        run: RunFolder,
        precision: str,
        formats: Sequence[str],
        module: fx.GraphModule,
        runtimes: Runtimes,
        require: Sequence[str],
        seed: int,
        on_step: Callable[[str], None],
    ) -> None:
        self.run_folder, self.precision, self.formats = run, precision, formats
        self.module, self.runtimes, self.require = module, runtimes, require
        self.seed, self.on_step = seed, on_step
        self.tapped, (last, *taps) = program.with_taps(module)
        name = run.artefact(precision, "onnx")
        content = run.need(name).read_bytes()
        names = [(tap.layer, tap.kind) for tap in (*taps, last)]
        self.onnx = OnnxFile(content, name, names)
        self.network: Network = self.onnx.network
        self.subjects: list[Subject] = []
        self.varied: list[dict[str, Any]] = []

    def _subject(self, file: str, configuration: str, shipped: bool) -> Subject:
        layers = [LayerVerdict(layer) for layer in self.network.layers]
        subject = Subject(file, self.precision, configuration, shipped, layers)
        self.subjects.append(subject)
        return subject

    def run_all(self, pixels: Tensor, dataset: Dataset) -> None:
        opened = [self._program()]
        layered: list[tuple[Subject, LayeredFile, Configuration]] = []
        for kind in self.formats:
            name = self.run_folder.artefact(self.precision, kind)
            content = self.run_folder.need(name).read_bytes()
            for configuration in JUDGED[kind]:
                if missing(configuration) and configuration.runtime not in self.require:
                    continue
                subject = self._subject(name, configuration.name, configuration.shipped)
                with _failures_of(subject):
                    file = self._file(content, name)
                    opened.append(self._open(subject, file, content, configuration))
                    layered.append((subject, file, configuration))
        self._in_place(opened, pixels.numpy())
        self._isolated(layered, dataset.test.images[:BATCH].numpy())
        self._finals(opened, dataset.test.images.numpy())
        for kind in self.formats:
            self._vary(kind, opened, pixels.numpy())

    def _file(self, content: bytes, name: str) -> LayeredFile:
        if name.endswith(OnnxFile.suffix):
            return self.onnx
        return TfliteFile(content, name, self.network.layers)

    def _program(self) -> _Opened:
        def whole(pixels: Array) -> Array:
            return program.run(self.module, torch.from_numpy(pixels))[0].numpy()

        def laid_open(pixels: Array) -> tuple[Array, dict[str, Array]]:
            final, *rest = (v.numpy() for v in program.run(self.tapped, torch.from_numpy(pixels)))
            values = [*rest, final]
            return final, integers(self.network, named(self.network, values))

        name = self.run_folder.artefact(self.precision, "pt2")
        subject = self._subject(name, PROGRAM, False)
        subject.runtime = f"{PROGRAM} {torch.__version__}"
        return _Opened(subject, whole, laid_open)

    def _open(
        self, subject: Subject, file: LayeredFile, content: bytes, configuration: Configuration
    ) -> _Opened:
        shipped = self.runtimes.open(configuration, content, subject.file)
        observed = self.runtimes.open(configuration, file.observed(), f"observed{file.suffix}")
        subject.runtime = shipped.runtime

        def laid_open(pixels: Array) -> tuple[Array, dict[str, Array]]:
            return file.split(_feed(observed, pixels))

        return _Opened(subject, lambda pixels: _feed(shipped, pixels)[0], laid_open)

    def _in_place(self, opened: list[_Opened], pixels: Array) -> None:
        for start in range(0, len(pixels), BATCH):
            self.on_step(f"{self.precision} layers of image {start + 1} of {len(pixels)}")
            batch = pixels[start : start + BATCH]
            chain = reference_chain(self.network, batch)
            for entry in opened:
                if entry.subject.error is None:
                    with _failures_of(entry.subject):
                        final, found = entry.observe(batch)
                        whole = entry.whole(batch)
                        observe(entry.subject, self.network, batch, chain, final, whole, found, start)

    def _isolated(
        self, layered: list[tuple[Subject, LayeredFile, Configuration]], pixels: Array
    ) -> None:
        chain = reference_chain(self.network, pixels)
        real = {
            name: value if self.network.int8 else value.value.astype(np.float32)
            for name, value in chain.items()
        }
        for number, layer in enumerate(self.network.layers):
            self.on_step(f"{self.precision} {layer.name} alone")
            given = {name: real[name] for name in layer.inputs}
            inputs = isolated_inputs(layer, self.network, given, self.seed)
            for subject, file, configuration in layered:
                if subject.error is None:
                    with _failures_of(subject):
                        verdict = subject.layers[number]
                        isolate(verdict, self.network, file, configuration, self.runtimes, inputs)

    def _finals(self, opened: list[_Opened], images: Array) -> None:
        self.on_step(f"{self.precision} final outputs of {len(images)} test images")
        for entry in opened:
            wanted = entry.subject.shipped or entry.subject.configuration == PROGRAM
            if wanted and entry.subject.error is None:
                with _failures_of(entry.subject):
                    for start in range(0, len(images), BATCH):
                        entry.subject.finals.append(entry.whole(images[start : start + BATCH]))

    def _vary(self, kind: str, opened: list[_Opened], pixels: Array) -> None:
        """Other threads, batches and kernels against the first configuration, final outputs only."""
        name = self.run_folder.artefact(self.precision, kind)
        entries = [e for e in opened if e.subject.file == name and e.subject.error is None]
        if not entries:
            return
        first, *others = entries
        expected = first.whole(pixels)
        content = self.run_folder.need(name).read_bytes()
        outputs = [(e.subject.configuration, e.whole(pixels)) for e in others]
        for configuration in VARIED[kind]:
            session = self.runtimes.open(configuration, content, name)
            outputs.append((configuration.name, _feed(session, pixels, configuration.batch)[0]))
        for configuration_name, output in outputs:
            unlike = output != expected
            self.varied.append(
                {
                    "file": name,
                    "configuration": configuration_name,
                    "against": first.subject.configuration,
                    "elements": int(output.size),
                    "differ": int(unlike.sum()),
                    "largest": float(np.abs(output.astype(np.float64) - expected).max()),
                }
            )


class _failures_of:  # noqa: N801  # reads as what it is used for
    """What goes wrong on the way is a failure of the subject, with its reason."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> bool:
        if isinstance(error, Exception):  # the runtimes' own exceptions share no base
            self.subject.error = first_line(error)
            return True
        return False


def _feed(session: Session, pixels: Array, batch: int = 0) -> list[Array]:
    return run_all(session, (as_input(pixels, session.inputs[0].dtype),), batch)
