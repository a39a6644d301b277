"""The laboratory: the files of one precision in every runtime, side by side, on the same inputs."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from deploy.runner.backends import Session, as_input
from deploy.runner.scores import steps

from ..errors import UserError, first_line
from .c_file import CFile, configurations, opened_library
from .cases import isolated_inputs
from .compiler import Sources, built
from .judge import Memo
from .merged import head
from .onnx_file import OnnxFile
from .report import fingerprint
from .runtimes import JUDGED, VARIED, Configuration, Runtimes, kind_of, lacks, run_all
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
BATCH = 100  # images whose layers are in memory at once


@dataclass
class Opened:
    """A subject with what runs it, on uint8 N x C x H x W: `whole` gives the file's own output,
    `observe` that of the file laid open, and every layer's value. `outputs` gathers what `whole`
    gave, batch by batch.
    """

    subject: Subject
    whole: Callable[[Array], Array]
    observe: Callable[[Array], tuple[Array, dict[str, Array]]]
    outputs: list[Array] = field(default_factory=list)


class Laboratory:
    """`reference` is the ONNX file that the layers are read from, `files` the contents to judge, by
    name: of generated C a library, or the sources that one is compiled from. `subjects` has the
    verdicts, `varied` what other kernels, threads and batches change.
    """

    def __init__(
        self,
        reference: OnnxFile,
        files: Mapping[str, bytes | Sources],
        precision: str,
        runtimes: Runtimes,
        require: Sequence[str] = (),
        seed: int = 0,
        on_step: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.reference, self.network, self.files = reference, reference.network, files
        self.precision, self.runtimes, self.require = precision, runtimes, require
        self.seed, self.on_step = seed, on_step
        self._built: dict[str, bytes] = {}
        self.subjects: list[Subject] = []
        self.varied: list[dict[str, Any]] = []

    def subject(self, file: str, configuration: str, shipped: bool) -> Subject:
        """A new one, whose layers are still to be judged."""
        layers = verdicts_of(self.network, {})
        subject = Subject(file, self.precision, configuration, shipped, layers)
        self.subjects.append(subject)
        return subject

    def judge(
        self, pixels: Array, alone: Array, test_images: Array | None, program: Opened | None = None
    ) -> None:
        """Judge every layer in place on `pixels`, and alone on its values for the images `alone`;
        keep final outputs for `test_images`. uint8 N x C x H x W all.
        """
        opened = [program] if program is not None else []
        layered: list[tuple[Subject, LayeredFile, Configuration]] = []
        for name in self.files:
            kind = kind_of(name)
            for configuration in self._configurations(name):
                subject = self.subject(name, configuration.name, configuration.shipped)
                with _failures_of(subject):
                    content = self._content(name)
                    file = self._layered(content, name)
                    opened.append(self._open(subject, file, content, configuration))
                    if configuration in JUDGED[kind]:
                        layered.append((subject, file, configuration))
        self._in_place(opened, pixels)
        self._isolated(layered, alone)
        if test_images is not None:
            self._finals(opened, test_images)
        for name in self.files:
            self._vary(name, opened, pixels)

    def _configurations(self, name: str) -> list[Configuration]:
        """Those to judge a file in: without runtimes that may be missing, and are."""
        kind = kind_of(name)
        known = [
            c
            for c in (*JUDGED[kind], *VARIED[kind])
            if c.runtime in self.require or not lacks(c, self.files[name])
        ]
        if kind != "c" or not known:
            return known
        try:
            return configurations(known, opened_library(self.runtimes, self._content(name)))
        except UserError:
            return known[:1]  # which fails, and says why

    def _content(self, name: str) -> bytes:
        content = self.files[name]
        if isinstance(content, bytes):
            return content
        if name not in self._built:
            self.on_step(f"{name}: compiling it")
            self._built[name] = built(content)
        return self._built[name]

    def _layered(self, content: bytes, name: str) -> LayeredFile:
        if kind_of(name) == "c":
            return CFile(content, name, opened_library(self.runtimes, content), self.network)
        if not name.endswith(OnnxFile.suffix):
            return TfliteFile(content, name, self.network.layers, self.network.image_shape)
        names = [(layer.name, layer.kind) for layer in self.network.layers]
        return OnnxFile(content, name, names)

    def _open(
        self, subject: Subject, file: LayeredFile, content: bytes, configuration: Configuration
    ) -> Opened:
        shipped = self.runtimes.open(configuration, content, subject.file)
        observed = file.lay_open(partial(self.runtimes.open, configuration))
        subject.layers = verdicts_of(self.network, file.differing)
        subject.runtime = shipped.runtime
        subject.integer, subject.scheme = configuration.integer, configuration.scheme

        def laid_open(pixels: Array) -> tuple[Array, dict[str, Array]]:
            return file.split([_feed(session, file, pixels) for session in observed])

        def whole(pixels: Array) -> Array:
            return _feed(shipped, file, pixels, configuration.batch)[0]

        return Opened(subject, whole, laid_open)

    def _in_place(self, opened: list[Opened], pixels: Array) -> None:
        for start in range(0, len(pixels), BATCH):
            self.on_step(f"{self.precision}: every layer in place (image {start} of {len(pixels)})")
            batch = pixels[start : start + BATCH]
            chains: dict[frozenset[str], dict[str, Any]] = {}
            memo = Memo()
            for entry in opened:
                if entry.subject.error is not None:
                    continue
                stepped = stepped_of(verdict.layer for verdict in entry.subject.layers)
                key = frozenset(stepped)
                if key not in chains:
                    chains[key] = reference_chain(self.network, batch, stepped)
                with _failures_of(entry.subject):
                    final, found = entry.observe(batch)
                    whole = entry.whole(batch)
                    entry.outputs.append(whole)
                    inside = (final, whole, found, start, memo)
                    observe(entry.subject, self.network, batch, chains[key], *inside)

    def _isolated(
        self, layered: list[tuple[Subject, LayeredFile, Configuration]], pixels: Array
    ) -> None:
        real = nominal(reference_chain(self.network, pixels))
        for layer in self.network.layers:
            self.on_step(f"{self.precision}: every layer alone ({layer.name})")
            given = {name: real[name] for name in layer.inputs}
            inputs, memo = isolated_inputs(layer, self.network, given, self.seed), Memo()
            for subject, file, configuration in layered:
                alone = (configuration, self.runtimes, inputs, memo)
                for verdict in judged_of(subject.layers):
                    if head(verdict.layer).name == layer.name and subject.error is None:
                        with _failures_of(subject):
                            isolate(verdict, self.network, file, *alone)

    def _finals(self, opened: list[Opened], images: Array) -> None:
        self.on_step(f"{self.precision}: final outputs of {len(images)} test images")
        for entry in opened:
            if entry.subject.shipped and entry.subject.error is None:
                with _failures_of(entry.subject):
                    for start in range(0, len(images), BATCH):
                        output = entry.whole(images[start : start + BATCH])
                        if not np.isfinite(output).all():
                            raise ValueError("NaN or infinity in the output for a test image")
                        entry.subject.finals.append(output)

    def _vary(self, name: str, opened: list[Opened], pixels: Array) -> None:
        """Final outputs with other threads, batches and kernels against the first configuration."""
        entries = [e for e in opened if e.subject.file == name and e.subject.error is None]
        if not entries:
            return
        first, *others = entries
        expected = np.concatenate(first.outputs)
        outputs = [(e.subject.configuration, np.concatenate(e.outputs)) for e in others]
        for configuration_name, output in outputs:
            found = self._comparable(output)
            self.varied.append(
                {
                    "cause": self._cause(first.subject, configuration_name, entries),
                    "file": name,
                    "configuration": configuration_name,
                    "against": first.subject.configuration,
                    "in_steps": self.network.layers[-1].quantization is not None,
                    "elements": int(output.size),
                    "differ": int((output != expected).sum()),
                    "largest": float(np.abs(found - self._comparable(expected)).max()),
                }
            )

    def _comparable(self, output: Array) -> Array:
        """In steps where the output is int8 or stands for it."""
        quantization = self.network.layers[-1].quantization
        return (steps(output, quantization) if quantization else output).astype(np.float64)

    def _cause(self, first: Subject, name: str, entries: list[Opened]) -> str:
        """Why final outputs may differ from the first configuration's, from what was found out."""
        other = next((e.subject for e in entries if e.subject.configuration == name), None)
        if any(verdict.layer.stepped for verdict in first.layers):
            return "inputs quantized otherwise, while it runs"
        if not self.network.quantized or other is None:
            return "sums in another order"
        for one, two in zip(first.layers, other.layers, strict=True):
            if fingerprint(one) != fingerprint(two):
                return f"{one.layer.name}: {fingerprint(two)}, not {fingerprint(one)}"
        return "float32 arithmetic"


@contextlib.contextmanager
def _failures_of(subject: Subject) -> Iterator[None]:
    """What goes wrong on the way is a failure of the subject, with its reason."""
    try:
        yield
    except Exception as error:  # the runtimes' own exceptions share no base
        subject.error = first_line(error)


def _feed(session: Session, file: LayeredFile, pixels: Array, batch: int = 0) -> list[Array]:
    values = as_input(pixels, session.inputs[0].dtype)
    return run_all(session, (file.image(values),), batch)
