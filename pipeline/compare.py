"""Runs side by side: how well, how alike, how large, how fast."""

from __future__ import annotations

from typing import Any

from .bench import BENCH
from .deployment.installation import latencies
from .errors import UsageError
from .interval import wilson
from .precisions import PRECISIONS
from .run_folder import RunFolder
from .verify import REPORT


def compare(runs: list[RunFolder]) -> list[dict[str, Any]]:
    """For each run and precision: accuracy with its 95 % interval, whether it is verified, bytes of
    the files that ship, and the lowest median latency measured here; None for what is not known.

    Accuracies are of all test images, in the program. Raises UsageError for fewer than two runs,
    the same one twice, or different test images, whose accuracies say nothing of one another;
    Missing, BadInput.
    """
    if len({run.name for run in runs}) < max(2, len(runs)):
        raise UsageError("there is nothing to compare", "name two or more different runs")
    data = {run.training["dataset_sha256"] for run in runs}
    if len(data) > 1:
        names = ", ".join(f"{run.name}: {run.training['dataset_name']}" for run in runs)
        raise UsageError(
            f"the runs are of different data ({names})", "compare runs of one data set and seed"
        )
    return [
        _row(run, precision) for run in runs for precision in PRECISIONS if _made(run, precision)
    ]


def _made(run: RunFolder, precision: str) -> bool:
    return run.artefact(precision, "pt2") in run.record["artefacts"]


def _row(run: RunFolder, precision: str) -> dict[str, Any]:
    report = _read(run, REPORT)
    program = run.artefact(precision, "pt2")
    accuracy = report["programs"].get(precision, {}).get("accuracy") if report else None
    interval = None
    if report and accuracy is not None:
        images = report["test_images"]
        interval = wilson(round(accuracy * images), images)
    judged = [a for a in report["artefacts"] if a["precision"] == precision] if report else []
    shipped = {a["file"]: run.entry(a["file"])["bytes"] for a in judged if a["shipped"]}
    times = [row for row in latencies(_read(run, BENCH)) if row["precision"] == precision]
    best = min(times, key=lambda row: float(row["p50_us"]), default=None)
    return {
        "run": run.name,
        "model": run.model,
        "precision": precision,
        "program": program,
        "parameters": run.training["parameters"],
        "accuracy": accuracy,
        "interval": interval,
        "verified": all(a["passed"] for a in judged) if judged else None,
        "bytes": shipped,
        "p50_us": best["p50_us"] if best else None,
        "runtime": best["runtime"] if best else None,
    }


def _read(run: RunFolder, name: str) -> Any:
    if name not in run.record["artefacts"]:
        return None
    return run.read_json(name)
