"""The whole pipeline in order: what is current is skipped, what has changed is made again."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from . import __version__, checkpoint
from .checkpoint import CHECKPOINT, TrainConfig
from .errors import VerificationFailed
from .export import export_run
from .network import Network
from .package import bundle_name, package_run
from .quantize import Calibration, quantize_run
from .run_folder import RunFolder
from .train import WEIGHTS, OnBatch, OnEpoch, train_run, training_config
from .verify import REPORT, verify_run


@dataclass(frozen=True)
class Stage:
    """What became of one stage."""

    name: str
    made: bool
    seconds: float


def run_all(
    run: RunFolder,
    network: Network,
    config: TrainConfig,
    images: int = 1000,
    *,
    on_stage: Callable[[str], None] = lambda _: None,
    on_done: Callable[[Stage], None] = lambda _: None,
    on_batch: OnBatch = lambda *_: None,
    on_epoch: OnEpoch = lambda _: None,
    on_step: Callable[[str], None] = lambda _: None,
    on_report: Callable[[dict[str, Any]], None] = lambda _: None,
) -> tuple[list[Stage], dict[str, Any]]:
    """Train, quantize, export, verify and package. Returns the stages and the verification report.

    An interrupted training goes on from its checkpoint. Raises VerificationFailed before packaging
    when an artefact is not what its program is.
    """
    import json

    def train() -> bool:
        program = run.artefact("fp32", "pt2")
        current = run.is_current(WEIGHTS, training_config(network, config))
        if current and run.is_current(program, {"pipeline": __version__}):
            return False
        path = run.path / CHECKPOINT
        resume = path.is_file() and checkpoint.read(path)[0] == config
        train_run(run, network, config, resume=resume, on_batch=on_batch, on_epoch=on_epoch)
        return True

    def verify() -> bool:
        wanted = {"images": images, "seed": 0, "pipeline": __version__}
        if run.is_current(REPORT, wanted) and run.entry(REPORT)["facts"]["passed"]:
            return False
        verify_run(run, images, on_step=on_step)
        return True

    def package() -> bool:
        report = json.loads(run.need(REPORT).read_bytes())
        on_report(report)
        if not report["passed"]:
            raise VerificationFailed(
                f"run {run.name} did not pass verification", f"see {run.path / REPORT}"
            )
        return package_run(run)

    stages: list[Stage] = []
    for name, stage in (
        ("train", train),
        ("quantize", lambda: quantize_run(run, Calibration())),
        ("export", lambda: any(export_run(run).values())),
        ("verify", verify),
        ("package", package),
    ):
        on_stage(name)
        started = time.perf_counter()
        stages.append(Stage(name, stage(), time.perf_counter() - started))
        on_done(stages[-1])
    run.need(bundle_name(run))
    return stages, json.loads(run.need(REPORT).read_bytes())
