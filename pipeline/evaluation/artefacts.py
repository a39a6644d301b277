"""Everything of a run that classifies, each by the runtime that it has on the device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from deploy.runner.backends import Session, as_input
from deploy.runner.contract import Contract
from deploy.runner.scores import real

from .. import program
from ..export import carried, contract_of
from ..run_exports import exports_of
from ..run_folder import RunFolder
from ..verify import PROGRAM, content_of
from ..verify.compiler import LIBRARY, Sources, built
from ..verify.runtimes import JUDGED, Runtimes, missing, run_all

BATCH = 500

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Artefact:
    """`scores` of uint8 N x C x H x W are float64 N x classes, as the contract has them."""

    file: str
    configuration: str
    precision: str
    contract: Contract
    scores: Callable[[Array], Array]

    @property
    def name(self) -> str:
        """File and runtime."""
        return f"{self.file} in {self.configuration}"


def artefacts_of(
    run: RunFolder, formats: Sequence[str], precisions: Sequence[str], runtimes: Runtimes
) -> tuple[list[Artefact], list[str]]:
    """The programs and what was exported of them, fp32 first; and the runtimes that are missing.

    The fp32 program, to which the others are compared, is always the first. Raises Missing or
    BadInput for files that are not there or not as recorded.
    """
    found = []
    for precision in dict.fromkeys(("fp32", *precisions)):
        name = run.artefact(precision, "pt2")
        module = program.load(run.need(name))
        contract = contract_of(run, module, precision)
        scores = partial(_of_program, module)
        found.append(Artefact(name, PROGRAM, precision, contract, scores))
        if precision in precisions:
            found += _exported(run, formats, precision, contract, runtimes)
    lacking = {c.runtime for kind in formats for c in JUDGED[kind] if c.shipped and missing(c)}
    return found, sorted(lacking)


def _exported(
    run: RunFolder,
    formats: Sequence[str],
    precision: str,
    contract: Contract,
    runtimes: Runtimes,
) -> Iterator[Artefact]:
    for _, kind in exports_of(run, formats, [precision]):
        name, own = run.artefact(precision, kind), carried(run, contract, kind)
        shipped = [c for c in JUDGED[kind] if c.shipped and not missing(c)]
        if not shipped:
            continue
        content, opened_as = content_of(run, name), name
        if isinstance(content, Sources):
            content, opened_as = built(content), LIBRARY
        for configuration in shipped:
            session = runtimes.open(configuration, content, opened_as)
            scores = partial(_of_session, session, own)
            yield Artefact(name, configuration.name, precision, own, scores)


def _of_program(module: torch.fx.GraphModule, pixels: Array) -> Array:
    return np.asarray(program.run(module, torch.from_numpy(pixels))[0].double().numpy())


def _of_session(session: Session, contract: Contract, pixels: Array) -> Array:
    values = as_input(pixels, session.inputs[0].dtype)
    raw = run_all(session, (values,), BATCH)[0]
    return np.asarray(real(raw, contract.output), np.float64)
