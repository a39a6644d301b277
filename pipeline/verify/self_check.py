"""Self-check: does verification find what is wrong? A run's own files are made wrong to see.

Every file is mutated in every way of `mutants`, at every operator, and verified as a run is: by the
runner and kernels that ship, each layer in place and alone, against the reference, which is read
from the unmutated ONNX file. A mutant that passes although one bit of its output is another is a
failure; so is an unmutated file that does not pass. Beside it stands what `np.allclose` finds of
the same mutants on the same images, against the unmutated file's own output.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from deploy.runner.backends import as_input
from deploy.runner.backends.session import Session
from deploy.runner.scores import real

from .. import __version__, program
from ..data import dataset_of
from ..errors import UsageError, first_line
from ..export import export_run
from ..precisions import FORMATS, USUAL
from ..run_exports import exports_of
from ..run_folder import RunFolder
from . import content_of, reference_of
from .c_file import CFile, opened_library
from .cases import cases_for, isolated_inputs
from .compiler import Sources, built
from .layers import IMAGE, Layer, Network
from .merged import head
from .mutants import Mutant, mutants_of
from .mutants.c import OPTIONS, mutants_of_c
from .onnx_file import OnnxFile
from .runtimes import JUDGED, Runtimes, run_all
from .subject import (
    LayeredFile,
    Subject,
    isolate,
    judged_of,
    nominal,
    observe,
    reference_chain,
    stepped_of,
    verdicts_of,
)
from .tflite_file import TfliteFile

Array = npt.NDArray[Any]

SELF_CHECK = "self-check.json"
BATCH = 32  # images that are judged at once; the first fail nearly every mutant
TOLERANCES = {"allclose_1e-3": 1e-3, "allclose_1e-5": 1e-5}  # relative and absolute
COUNTS = ("mutants", "changed", "killed", "killed_changed", *TOLERANCES, "equivalent")


def self_check(
    run: RunFolder,
    formats: Sequence[str] = FORMATS,
    precisions: Sequence[str] = USUAL,
    images: int = 100,
    seed: int = 0,
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Verify every mutant of every file on `images` test images and the made ones.

    Returns {"passed", "false_alarms": [why], "files": [{"file", "rows"}], "total": counts}. A row
    has "mutation", the counts, and "missed": the layers of mutants that passed and yet compute
    something else, be it only inside or from made inputs. The counts are "mutants"; "changed", with
    another output; "killed", found by verification; "killed_changed", both; "allclose_1e-3" and
    "allclose_1e-5", changed ones that np.allclose finds; "equivalent", passed and nowhere changed.
    It is saved in the run; a dry run returns nothing. Raises UsageError, Missing or BadInput.
    """
    if images < 1:
        raise UsageError(f"--images {images}", "give 1 or more")
    export_run(run, tuple({"onnx", *formats}), precisions)
    if not run.wants(SELF_CHECK):
        return {}
    cases = cases_for(dataset_of(run), images, seed)
    pixels = torch.cat([case.pixels for case in cases])
    alarms: list[str] = []
    files: list[dict[str, Any]] = []
    with Runtimes() as runtimes:
        for precision in precisions:
            on_step(f"{precision} reference")
            reference = _reference(run, precision, pixels, seed)
            for _, kind in exports_of(run, formats, [precision]):
                file = _File(run, precision, kind, reference, runtimes)
                on_step(file.name)
                alarms += file.alarms()
                files.append({"file": file.name, "rows": _rows(file, on_step)})
    rows = [row for entry in files for row in entry["rows"]]
    total = {count: sum(row[count] for row in rows) for count in COUNTS}
    passed = not alarms and 0 < total["changed"] == total["killed_changed"]
    report = {"passed": passed, "false_alarms": alarms, "files": files, "total": total}
    config = {"images": images, "seed": seed, "pipeline": __version__}
    run.commit_json(SELF_CHECK, report, config, [entry["file"] for entry in files])
    return report


def _rows(file: _File, on_step: Callable[[str], None]) -> list[dict[str, Any]]:
    """One for each mutation that is possible in the file."""
    rows: dict[str, dict[str, Any]] = {}
    for mutant in file.mutants():
        on_step(f"{file.name} {mutant.name} {mutant.layer}")
        new = {"mutation": mutant.name, **dict.fromkeys(COUNTS, 0), "missed": []}
        row = rows.setdefault(mutant.name, new)
        found = file.outcome(mutant)
        for count in found:
            row[count] += 1
        if not found & {"killed", "equivalent"}:
            row["missed"].append(mutant.layer)
    return list(rows.values())


@dataclass(frozen=True)
class _Reference:
    """What all files of one precision are judged by: of every BATCH of the images `pixels` the
    reference's values, and what each layer is fed alone.
    """

    onnx: OnnxFile
    pixels: Array
    chains: Sequence[Mapping[str, Any]]
    alone: Mapping[str, Mapping[str, Array]]

    @property
    def network(self) -> Network:
        return self.onnx.network


def _reference(run: RunFolder, precision: str, images: Tensor, seed: int) -> _Reference:
    module = program.load(run.need(run.artefact(precision, "pt2")))
    onnx = reference_of(run, precision, module)
    network, pixels = onnx.network, images.numpy()
    chains = chains_of(network, pixels)
    values = nominal(chains[0])
    alone = {
        layer.name: isolated_inputs(layer, network, {n: values[n] for n in layer.inputs}, seed)
        for layer in network.layers
    }
    return _Reference(onnx, pixels, chains, alone)


def chains_of(
    network: Network, pixels: Array, differing: Mapping[str, Layer] | None = None
) -> list[dict[str, Any]]:
    """`reference_chain` of every BATCH of the images."""
    return [
        reference_chain(network, pixels[start : start + BATCH], differing)
        for start in range(0, len(pixels), BATCH)
    ]


class _File:
    """A file as it is, and what becomes of its mutants."""

    def __init__(
        self, run: RunFolder, precision: str, kind: str, reference: _Reference, runtimes: Runtimes
    ) -> None:
        self.name, self.precision = run.artefact(precision, kind), precision
        self.reference, self.network, self.runtimes = reference, reference.network, runtimes
        self.configuration = JUDGED[kind][0]
        content = content_of(run, self.name)
        self.mutants = partial(mutants_of, run.need(self.name))
        if isinstance(content, Sources):
            onnx = run.need(run.artefact(precision, "onnx"))
            self.mutants = partial(mutants_of_c, content, onnx)
            content = built(content, OPTIONS)
        self.content = content
        self.layered = self._layered(kind)
        session = self._open(self.content, self.name)
        self.quantization = session.outputs[0].quantization
        self.whole = self._feed(session)[0]
        self.chains = reference.chains
        if stepped := stepped_of(self.layered.differing.values()):
            self.chains = chains_of(self.network, reference.pixels, stepped)

    def _layered(self, kind: str) -> OnnxFile | TfliteFile | CFile:
        if kind == "onnx":
            return self.reference.onnx
        if kind == "c":
            library = opened_library(self.runtimes, self.content)
            return CFile(self.content, self.name, library, self.network)
        layers, shape = self.network.layers, self.network.image_shape
        return TfliteFile(self.content, self.name, layers, shape)

    def _changed(self, content: bytes) -> LayeredFile:
        """Another file in which the same values have the same names."""
        if isinstance(self.layered, CFile):
            library = opened_library(self.runtimes, content)
            return CFile(content, self.name, library, self.network)
        return self.layered.changed(content)

    def alarms(self) -> list[str]:
        """Why the unmutated file does not pass; nothing if it does."""
        same = self._changed(self.content)  # the way that its mutants go
        subject = self._verdict(same, self.whole)
        if subject.passed:
            return []
        broken = subject.first_broken
        return [f"{self.name}: {subject.error or (broken.layer.name if broken else 'output')}"]

    def outcome(self, mutant: Mutant) -> set[str]:
        """Which COUNTS a mutant adds to."""
        try:
            whole = self._feed(self._open(mutant.content, self.name))[0]
            layered = self._changed(mutant.content)
        except Exception:  # no output at all: whoever looks at it sees that
            return {*COUNTS} - {"equivalent"}
        changed = not np.array_equal(whole, self.whole)
        killed = not self._verdict(layered, whole).passed
        outcome = {"mutants"}
        if changed:
            outcome |= {"changed"} | {
                name for name, limit in TOLERANCES.items() if not self._close(whole, limit)
            }
        if killed:
            outcome |= {"killed", "killed_changed"} if changed else {"killed"}
        elif not changed and self._equivalent(layered):
            outcome.add("equivalent")
        return outcome

    def _verdict(self, layered: LayeredFile, whole: Array) -> Subject:
        """As verification judges it, but it ends where the first layer fails."""
        verdicts = verdicts_of(self.network, layered.differing)
        subject = Subject(self.name, self.precision, self.configuration.name, True, verdicts)
        subject.integer = self.configuration.integer
        subject.scheme = self.configuration.scheme
        try:
            final, found = self._inside(layered)
            for number, chain in enumerate(self.chains):
                first = number * BATCH
                part = slice(first, first + BATCH)
                pixels, values = self.reference.pixels[part], {n: v[part] for n, v in found.items()}
                observe(
                    subject, self.network, pixels, chain, final[part], whole[part], values, first
                )
                if not subject.passed:
                    return subject
            for verdict in judged_of(verdicts):
                inputs = self.reference.alone[head(verdict.layer).name]
                isolate(verdict, self.network, layered, self.configuration, self.runtimes, inputs)
                if not verdict.passed:
                    return subject
        except Exception as error:  # the runtimes' own exceptions share no base
            subject.error = first_line(error)
        return subject

    def _close(self, whole: Array, tolerance: float) -> bool:
        one, other = (real(output, self.quantization) for output in (whole, self.whole))
        return one.shape == other.shape and np.allclose(one, other, tolerance, tolerance)

    def _equivalent(self, layered: LayeredFile) -> bool:
        """Whether no layer computes anything else, in place or alone."""
        values, alone = self._values
        found = self._inside(layered)[1]
        return (
            found.keys() == values.keys()
            and all(np.array_equal(found[name], value) for name, value in values.items())
            and all(
                np.array_equal(value, right)
                for value, right in zip(self._alone(layered), alone, strict=True)
            )
        )

    @cached_property
    def _values(self) -> tuple[dict[str, Array], list[Array]]:
        return self._inside(self.layered)[1], list(self._alone(self.layered))

    def _inside(self, layered: LayeredFile) -> tuple[Array, dict[str, Array]]:
        """The output with all layers observed, and each layer's value."""
        return layered.split([self._feed(session) for session in layered.lay_open(self._open)])

    def _alone(self, layered: LayeredFile) -> Iterator[Array]:
        """What each layer makes of the inputs it is judged by alone."""
        for verdict in judged_of(verdicts_of(self.network, layered.differing)):
            layer = verdict.layer
            inputs = self.reference.alone[head(layer).name]
            session = layered.cut_out(layer, self._open)
            values = tuple(layered.given(name, inputs[name]) for name in layer.inputs)
            yield run_all(session, values, self.configuration.batch)[0]

    def _open(self, content: bytes, name: str) -> Session:
        return self.runtimes.open(self.configuration, content, name)

    def _feed(self, session: Session) -> list[Array]:
        image = as_input(self.reference.pixels, session.inputs[0].dtype)
        return run_all(session, (self.layered.given(IMAGE, image),), self.configuration.batch)
