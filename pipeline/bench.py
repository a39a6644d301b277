"""Latency, start and memory of everything that ships, on this machine: the runner's own `bench`."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

from deploy.runner.bundle import Bundle
from deploy.runner.sweep import Row, model_card, sweep

from . import __version__
from .errors import Missing
from .package import Order, bundle_name, package_run
from .precisions import FORMATS, PRECISIONS, artefacts
from .run_exports import lacking
from .run_folder import RunFolder
from .verify import REPORT
from .verify.compiler import compiler
from .verify.remote import tflite_runtime_python
from .verify.runtimes import ELSEWHERE

BENCH = "bench.json"
HOST = "host"
INFERENCES = 1000


def bench_run(
    run: RunFolder,
    count: int = INFERENCES,
    order: Order | None = None,
    on_row: Callable[[Row], None] = lambda _: None,
) -> dict[str, Any]:
    """Time `count` inferences of one image in each runtime, precision and number of threads.

    What is timed is the bundle of `order`: by default one for this machine with all that has been
    exported, or, where there is no compiler, without C. It is packed for this alone. Each choice
    has a process of its own. Returns the model card that is saved in the run; a dry run, nothing.
    Raises Missing, and the errors of packaging.
    """
    order = order or _order(run)
    if not run.wants(BENCH):
        return {}
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        copy = RunFolder(work / run.name, deepcopy(run.record))
        shutil.copytree(run.path, copy.path)
        package_run(copy, order)
        name = bundle_name(copy, order.place)
        with tarfile.open(copy.need(name)) as files:
            files.extractall(work, filter="data")
        bundle = Bundle.open(work / name.removesuffix(".tar.gz"))
        elsewhere = tflite_runtime_python()
        pythons = {} if elsewhere is None else dict.fromkeys(ELSEWHERE, str(elsewhere))
        rows = sweep(bundle, None, None, None, count, on_row, pythons)
        # Where no environment was made for it, it has no wheel: nothing here would mend that.
        rows = [row for row in rows if row.timing or row.choice.runtime not in ELSEWHERE]
        card = model_card(bundle, rows)
        models = list(copy.entry(name)["inputs"])
    run.commit_json(BENCH, card, bench_config(order, count), models)
    return card


def bench_config(order: Order, count: int = INFERENCES) -> dict[str, Any]:
    """What run.json keeps to tell whether timing again would time the same."""
    chosen = {"formats": sorted(order.formats), "precisions": sorted(order.precisions)}
    return {"count": count, "native": order.is_native, "pipeline": __version__, **chosen}


def _order(run: RunFolder) -> Order:
    """All of the run's verified files that can be timed here."""
    made = run.record["artefacts"].get(REPORT, {}).get("inputs", {})
    precisions = [
        precision
        for precision in PRECISIONS
        if any(
            run.artefact(*file) in made for file in artefacts(FORMATS, [precision], lacking(run))
        )
    ]
    kinds = [
        kind
        for kind in FORMATS
        if all(run.artefact(*file) in made for file in artefacts([kind], precisions, lacking(run)))
    ]
    native = "c" in kinds and compiler() is not None
    if not precisions or kinds == [] or (kinds == ["c"] and not native):
        raise Missing(f"run {run.name} has nothing verified to time", "run 'pipeline verify'")
    if native:
        return Order.of(kinds, precisions, HOST)
    return Order(tuple(kinds), tuple(precisions))
