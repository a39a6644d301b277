"""The whole pipeline in order: what is current is skipped, what has changed is made again."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import __version__, checkpoint
from .bench import BENCH, bench_config, bench_run
from .checkpoint import TrainConfig
from .data import dataset_of
from .errors import BadInput, Missing, UsageError, VerificationFailed
from .export import export_run
from .network import Network
from .package import Order, bundle_name, package_run
from .package.order import PACKED
from .precisions import FORMATS, USUAL
from .quantization import quantize_run
from .report import FACTS, PAGE, is_wanted, report_run
from .run_folder import CHECKPOINT, UNCHANGED, RunFolder
from .train import OnBatch, OnEpoch
from .train_stage import WEIGHTS, refuse_interrupted, train_run, training_config
from .verify import REPORT, run_files, verify_config, verify_run


@dataclass(frozen=True)
class Stage:
    """What became of one stage."""

    name: str
    made: bool
    seconds: float


def same_data(run: RunFolder) -> bool:
    """Whether the data set is still the one that the run was trained on."""
    try:
        dataset_of(run)
    except (BadInput, Missing):
        return False
    return True


def _is_of(path: Path, config: TrainConfig) -> bool:
    """Whether a checkpoint is of this training, wherever the data lie now."""
    return replace(checkpoint.read(path).config, data_dir=config.data_dir) == config


def run_all(
    run: RunFolder,
    network: Network,
    config: TrainConfig,
    formats: Sequence[str] = FORMATS,
    precisions: Sequence[str] = USUAL,
    images: int = 1000,
    *,
    overwrite: bool = False,
    on_done: Callable[[Stage], None] = lambda _: None,
    on_batch: OnBatch = lambda *_: None,
    on_epoch: OnEpoch = lambda _: None,
    on_step: Callable[[str], None] = lambda _: None,
    on_report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> tuple[list[Stage], dict[str, Any]]:
    """Train, quantize, export, verify, package, bench and report. Returns the stages and the
    verification report; a dry run, nothing.

    An interrupted training goes on from its checkpoint. Raises VerificationFailed before packaging
    when an artefact is not what its program is.
    """
    order = Order(tuple(formats), tuple(precisions))
    files = {
        "train": [WEIGHTS, run.artefact("fp32", "pt2")],
        "quantize": [run.artefact(p, "pt2") for p in precisions if p == "int8"],
        "export": run_files(run, formats, precisions),
        "verify": [REPORT],
        "package": [bundle_name(run)],
        "bench": [BENCH] if set(formats) & set(PACKED) else [],
        "report": [PAGE, FACTS],
    }

    def train() -> bool:
        program = run.artefact("fp32", "pt2")
        current = run.is_current(WEIGHTS, training_config(network, config))
        if current and run.is_current(program, {"pipeline": __version__}) and same_data(run):
            return False
        if WEIGHTS in run.record["artefacts"] and not overwrite:
            raise UsageError(
                f"run {run.name} has weights from another training, network or data",
                "give another --run NAME, or --overwrite to train it anew",
            )
        path = run.path / CHECKPOINT
        resume = not overwrite and path.is_file() and _is_of(path, config)
        if not (resume or overwrite):
            refuse_interrupted(run)
        if not run.wants(*files["train"]):
            return False
        train_run(
            run,
            network,
            config,
            resume=resume,
            precisions=precisions,
            on_batch=on_batch,
            on_epoch=on_epoch,
        )
        return True

    def verify() -> bool:
        known = run.record["artefacts"].get(REPORT)
        passed = known is not None and known["facts"]["passed"]
        config = verify_config(images, formats, precisions) if passed else None
        if not run.wants(REPORT, config=config):
            return False
        verify_run(run, images, formats, precisions, on_step=on_step)
        return True

    def package() -> bool:
        report = run.read_json(REPORT)
        on_report(report)
        if not report["passed"]:
            report_run(run)
            raise VerificationFailed(
                f"run {run.name} did not pass verification", f"see {run.path / PAGE}"
            )
        return package_run(run, order)

    def bench() -> bool:
        if not set(formats) & set(PACKED):  # C is not compiled for this
            return False
        known = run.record["artefacts"].get(BENCH, {}).get("config", {})
        native = known.get("native", False)  # timed with C, too, by `pipeline bench`: better
        if not run.wants(BENCH, config=known if native else bench_config(order)):
            return False
        bench_run(run, order=order)
        return True

    def report() -> bool:
        return is_wanted(run) and bool(report_run(run))

    stages: list[Stage] = []
    for name, stage in (
        ("train", train),
        ("quantize", lambda: "int8" in precisions and quantize_run(run)),
        ("export", lambda: any(export_run(run, formats, precisions).values())),
        ("verify", verify),
        ("package", package),
        ("bench", bench),
        ("report", report),
    ):
        if run.plan is not None and set(run.plan.values()) - {UNCHANGED}:
            run.wants(*files[name])  # what comes after something new is new
            continue
        started = time.perf_counter()
        stages.append(Stage(name, stage(), time.perf_counter() - started))
        on_done(stages[-1])
    if run.plan is not None:
        return [], {}
    run.need(bundle_name(run))
    return stages, run.read_json(REPORT)
