"""What /metrics says, in Prometheus' text format 0.0.4."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter

KIND = "text/plain; version=0.0.4; charset=utf-8"
BOUNDS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)  # seconds


class Metrics:
    """Counts since the start. Paths are those that are served, so their number does not grow."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._within = [0] * len(BOUNDS)
        self._inferences = 0
        self._seconds = 0.0
        self._start = time.monotonic()

    def count(self, path: str, status: int) -> None:
        """A request was answered."""
        with self._lock:
            self._requests[path, status] += 1

    def time(self, seconds: float) -> None:
        """The network took so long for one picture."""
        with self._lock:
            self._inferences += 1
            self._seconds += seconds
            for i, bound in enumerate(BOUNDS):
                self._within[i] += seconds <= bound

    def text(self) -> str:
        """The document."""
        with self._lock:
            lines = ["# HELP runner_requests_total Requests answered.", *_type("requests_total")]
            for (path, status), count in sorted(self._requests.items()):
                lines.append(f'runner_requests_total{{path="{path}",status="{status}"}} {count}')
            lines += ["# HELP runner_inference_seconds Time of the network alone."]
            lines += _type("inference_seconds", "histogram")
            for bound, count in zip(BOUNDS, self._within, strict=True):
                lines.append(f'runner_inference_seconds_bucket{{le="{bound}"}} {count}')
            lines += [
                f'runner_inference_seconds_bucket{{le="+Inf"}} {self._inferences}',
                f"runner_inference_seconds_sum {self._seconds}",
                f"runner_inference_seconds_count {self._inferences}",
                "# HELP runner_uptime_seconds Time since the start.",
                *_type("uptime_seconds", "gauge"),
                f"runner_uptime_seconds {time.monotonic() - self._start}",
                "# HELP runner_resident_bytes Memory of this process.",
                *_type("resident_bytes", "gauge"),
                f"runner_resident_bytes {_resident()}",
            ]
        return "\n".join(lines) + "\n"


def _type(name: str, kind: str = "counter") -> list[str]:
    return [f"# TYPE runner_{name} {kind}"]


def _resident() -> int:
    with open("/proc/self/statm", "rb") as statm:  # noqa: PTH123
        return int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
