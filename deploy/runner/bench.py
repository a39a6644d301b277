"""How long import, load and inference take here, and how much memory they need."""

from __future__ import annotations

import contextlib
import importlib
import resource
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .backends import Model


@dataclass(frozen=True)
class Timing:
    """Times and peak memory of one process; `import_ms` is the runtime's import alone."""

    runtime: str
    file: str
    import_ms: float
    load_ms: float
    first_ms: float
    p50_us: float
    p90_us: float
    p99_us: float
    inferences: int
    peak_mb: float


def bench(
    modules: Sequence[str],
    open_model: Callable[[], Model],
    file: str,
    images: npt.NDArray[np.uint8],
    count: int,
) -> Timing:
    """Open the model, then run `count` inferences of one image each, round-robin over `images`.

    `modules` are what the runtimes import, in the order in which they are tried.
    """
    began = time.perf_counter()
    for module in modules:
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
            break
    started = time.perf_counter()
    model = open_model()
    loaded = time.perf_counter()
    model.run(images[:1])
    first = time.perf_counter()
    times = np.empty(count)
    for i in range(count):
        image = images[i % len(images)][None]
        before = time.perf_counter()
        model.run(image)
        times[i] = time.perf_counter() - before
    p50, p90, p99 = np.percentile(times * 1e6, [50, 90, 99])
    return Timing(
        model.runtime,
        file,
        (started - began) * 1e3,
        (loaded - started) * 1e3,
        (first - loaded) * 1e3,
        float(p50),
        float(p90),
        float(p99),
        count,
        _peak(),
    )


def _peak() -> float:
    """The most memory that this process has had, in MB. Linux's getrusage would also count what its
    parent had when it was made.
    """
    with contextlib.suppress(OSError), Path("/proc/self/status").open() as status:
        for line in status:
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20) if sys.platform == "darwin" else peak / 1024
