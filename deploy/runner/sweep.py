"""The benchmark of everything that a bundle can do here, as a table and as a model card."""

from __future__ import annotations

import platform
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from .apart import Choice, choices, processors, run_apart
from .backends import BACKENDS
from .bundle import Bundle

# What a benchmark measures: its name in `bench.Timing`; in words; and at the head of a column.
METRICS = {
    "p50_us": ("latency p50 (us)", "p50 us"),
    "p90_us": ("latency p90 (us)", "p90 us"),
    "p99_us": ("latency p99 (us)", "p99 us"),
    "first_ms": ("first inference (ms)", "first ms"),
    "load_ms": ("load (ms)", "load ms"),
    "import_ms": ("import of the runtime (ms)", "import ms"),
    "peak_mb": ("peak memory (MB)", "peak MB"),
}
CLOSE = 1.05  # latencies within this factor are alike: then less memory is better


@dataclass(frozen=True)
class Row:
    """One way to run the model: `timing` is of `bench.Timing`, None where `reason` says why not."""

    choice: Choice
    timing: dict[str, Any] | None
    reason: str


def sweep(
    bundle: Bundle,
    runtime: str | None,
    precision: str | None,
    threads: int | None,
    count: int,
    on_row: Callable[[Row], None],
    pythons: Mapping[str, str] = MappingProxyType({}),
) -> list[Row]:
    """Time all choices that are not named, each in a process of its own, one after another.

    `pythons` are the interpreters of runtimes that are not installed for this one.
    """
    rows = []
    for choice in choices(bundle, runtime, precision):
        for number in [threads] if threads else thread_counts(choice.runtime):
            one = replace(choice, threads=number)
            python = pythons.get(choice.runtime, sys.executable)
            answer = run_apart(bundle, "bench", one, "--count", str(count), python=python)
            rows.append(Row(one, answer.document, answer.reason))
            on_row(rows[-1])
            if rows[-1].timing is None:
                break  # more threads do not mend it
    return rows


def thread_counts(runtime: str) -> list[int]:
    """1, 2, 4, ... as far as there are processors; generated C has one thread."""
    if not BACKENDS[runtime].THREADED:
        return [1]
    return [n for n in (1 << i for i in range(8)) if n <= processors()]


def recommended(rows: list[Row]) -> Row | None:
    """The fastest at the median, and of what is as fast the one that takes least memory."""
    timed = [(row, row.timing) for row in rows if row.timing is not None]
    if not timed:
        return None
    best = min(timing["p50_us"] for _, timing in timed)
    close = [
        (timing["peak_mb"], i)
        for i, (_, timing) in enumerate(timed)
        if timing["p50_us"] <= CLOSE * best
    ]
    return timed[min(close)[1]][0]


def model_card(bundle: Bundle, rows: list[Row]) -> dict[str, Any]:
    """The rows as the `model-index` of a model card's metadata, with the device beside it."""
    contract = bundle.contract(bundle.default_precision())
    best = recommended(rows)
    results = []
    for row in rows:
        if row.timing is None:
            continue
        args = {"precision": row.choice.precision, "threads": row.choice.threads}
        args |= {"runtime": row.timing["runtime"], "file": row.timing["file"]}
        metrics = [
            {"type": type_, "name": name, "value": row.timing[type_], "args": args}
            for type_, (name, _) in METRICS.items()
        ]
        accuracy = bundle.manifest["models"].get(row.timing["file"], {}).get("accuracy")
        if accuracy is not None:
            metrics.append(
                {"type": "accuracy", "name": "accuracy", "value": accuracy, "args": args}
            )
        task = {"type": "image-classification"}
        dataset = {"type": contract.dataset, "name": contract.dataset}
        results.append({"task": task, "dataset": dataset, "metrics": metrics})
    return {
        "model-index": [{"name": contract.model, "results": results}],
        "device": {"machine": platform.machine(), "processors": processors()},
        "unusable": {str(row.choice): row.reason for row in rows if row.timing is None},
        "recommendation": str(best.choice) if best else None,
    }


def line(row: Row) -> str:
    """A row of the table."""
    choice = row.choice
    start = f"{choice.runtime:15}{choice.precision:8}{choice.threads:3}"
    if row.timing is None:
        return f"{start}  not usable: {row.reason.partition('; ')[0]}"
    times = (f"{row.timing[name]:10.1f}" for name in METRICS)
    return start + "".join(times)


HEAD = f"{'runtime':15}{'':8}{'thr':>3}" + "".join(f"{head:>10}" for _, head in METRICS.values())
