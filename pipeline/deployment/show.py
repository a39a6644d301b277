"""What a person sees of a deployment."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from deploy.runner.sweep import METRICS

from ..console import out, table
from . import Deployed
from .installation import latencies

SHOWN = ("p50_us", "p90_us", "p99_us", "peak_mb")  # of sweep.METRICS


def show_device(host: str, reports: dict[str, Any]) -> None:
    """What doctor found amiss, and the latencies, as tables; the runtime to take."""
    amiss = [finding for finding in reports.get("doctor", []) if finding["state"] != "fine"]
    if amiss:
        names = ("what", "state", "found", "mend")
        findings = [[finding[name] for name in names] for finding in amiss]
        table(f"{host}: what its doctor says", names, findings, text=names)
    bench = reports.get("bench")
    show_latencies(host, bench)
    if isinstance(bench, dict) and bench.get("recommendation"):
        out().print(f"recommended there: {bench['recommendation']}")


def show_latencies(where: str, bench: Any) -> None:
    """The rows of a `bench` report as a table, where there are some."""
    rows = [_latency(row) for row in latencies(bench)]
    if rows:
        columns = ("runtime", "precision", "threads", *(METRICS[name][1] for name in SHOWN))
        table(f"{where}: one image at a time", columns, rows, text=("precision",))


def _latency(row: dict[str, Any]) -> Sequence[str]:
    known = [str(row["runtime"]), str(row["precision"]), str(row["threads"])]
    return [*known, *(f"{row[name]:,.1f}" if name in row else "" for name in SHOWN)]


def show_fleet(results: dict[str, Deployed | None]) -> None:
    """A line for each device: what came of it, and the median latency of what is fastest there."""
    rows = []
    for host, deployed in results.items():
        if deployed is None:
            rows.append([host, "not reached: one before it failed", ""])
            continue
        state = "installed" if deployed.error is None else str(deployed.error.message)
        times = [row["p50_us"] for row in latencies(deployed.reports.get("bench"))]
        rows.append([host, state, f"{min(times):,.1f}" if times else ""])
    table("devices", ("device", "result", "p50 us"), rows, text=("result",))
