"""Golden vectors: what the trained program answered on the workstation, replayed here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from .backends import Model
from .bundle import Bundle
from .errors import BadInput
from .scores import real, steps

GOLDEN = "golden.npz"

# fp32, fp16: sums of n products taken in another order differ by about sqrt(n) roundings of 2**-24
# (Higham and Mary 2019); for n up to 2**16 products that is 2**-16 of the largest value.
FP32_RELATIVE = 2.0**-16


@dataclass(frozen=True)
class Result:
    """Largest deviation over all golden vectors, in steps where the scores are integers, else as a
    part of the largest score: `unit` says so.
    """

    runtime: str
    precision: str
    images: int
    equal: float
    largest: float
    limit: float
    unit: str

    @property
    def passed(self) -> bool:
        """NaN compares as failed."""
        return self.largest <= self.limit


def selftest(bundle: Bundle, model: Model) -> Result:
    """Run the golden images through `model` and compare with the program's own outputs."""
    precision = model.contract.precision
    with np.load(bundle.folder / GOLDEN, allow_pickle=False) as golden:
        images, expected = golden["images"], golden[precision]
    if not len(images):
        raise BadInput(f"{bundle.folder / GOLDEN}: no golden vectors")
    found = model.run(images)[0]
    if found.shape != expected.shape:
        raise BadInput(f"{model.runtime}: outputs have shape {found.shape}, not {expected.shape}")
    if model.contract.output is not None:
        difference = np.abs(steps(found, model.contract.output).astype(np.float64) - expected)
        # One step more than verification found between the runtimes and the program.
        limit = float(bundle.manifest[f"{precision}_steps"])
    else:
        difference = relative(real(found, None), expected.astype(np.float64))
        limit = FP32_RELATIVE
        if precision in ("int8", "dynamic"):  # integers before the scores may be a step off
            limit = max(limit, float(bundle.manifest[f"{precision}_relative"]))
    equal, largest = float(np.mean(difference == 0)), float(difference.max())
    unit = "of the largest score" if model.contract.output is None else "steps"
    return Result(model.runtime, precision, len(images), equal, largest, limit, unit)


def relative(found: npt.NDArray[Any], expected: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """|found - expected| as a part of the largest |expected|; NaN stays NaN."""
    largest = max(float(np.abs(expected).max()), np.finfo(np.float32).tiny)
    return np.asarray(np.abs(found.astype(np.float64) - expected) / largest)
