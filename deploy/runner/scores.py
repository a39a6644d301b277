"""From a model's raw outputs to scores and labels."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from .contract import Contract, Quantization

Floats = npt.NDArray[np.float64]


def real(raw: npt.NDArray[Any], quantization: Quantization | None) -> Floats:
    """Integers to the real numbers they stand for: scale * (q - zero_point). Floats pass."""
    if not np.issubdtype(raw.dtype, np.integer):
        return raw.astype(np.float64)
    if quantization is None:
        raise ValueError(f"{raw.dtype} outputs need quantization parameters")
    return (raw.astype(np.float64) - quantization.zero_point) * quantization.scale


def steps(raw: npt.NDArray[Any], quantization: Quantization) -> npt.NDArray[np.int64]:
    """Outputs as the integers q that they stand for; exact for reals that are scale * (q - zero).

    NaN and infinities, which no integer stands for, become the smallest int64, which equals none.
    """
    if np.issubdtype(raw.dtype, np.integer):
        return raw.astype(np.int64)
    values = np.rint(raw.astype(np.float64) / quantization.scale) + quantization.zero_point
    lowest = np.iinfo(np.int64).min
    return np.where(np.isfinite(values), values, 0).astype(np.int64) + np.where(
        np.isfinite(values), 0, lowest
    )


def probabilities(scores: Floats, contract: Contract) -> Floats:
    """N x classes scores to probabilities: softmax for logits, at the contract's temperature;
    unchanged where they are some.
    """
    if contract.scores == "probabilities":
        return scores
    powers = np.exp((scores - scores.max(axis=1, keepdims=True)) / contract.temperature)
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))
