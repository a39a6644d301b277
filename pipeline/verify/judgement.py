"""What was found of one layer in one runtime: counts and measures that add up, and the verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from .schemes import EXACT, FLOAT32


@dataclass(frozen=True)
class Worst:
    """One element: its index (image first), both values, and what it may be off by."""

    position: tuple[int, ...]
    expected: float
    found: float
    bound: float


@dataclass(frozen=True)
class Judgement:
    """Counts and measures over all elements that were judged; two of them add up.

    fp32: `outside` its bound are failures, `unlikely` is beyond the probabilistic bound. int8, and
    where a runtime quantizes inputs by itself: `matches` counts for each scheme the elements that
    it reproduces, and what the best one, or the one that is `demanded`, leaves over is outside.
    Differences are from the exact value, in steps for int8. `problem` says why there is nothing to
    judge.
    """

    elements: int = 0
    equal: int = 0
    beyond: int = 0
    unlikely: int = 0
    largest: float = 0.0
    total: float = 0.0
    fraction: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    product: float = 0.0
    power: float = 0.0
    matches: Mapping[str, int] = field(default_factory=dict)
    misses: Mapping[str, Worst] = field(default_factory=dict)
    telling: int = 0
    histogram: Mapping[int, int] = field(default_factory=dict)
    worst: Worst | None = None
    problem: str | None = None
    demanded: str = ""

    def __add__(self, other: Judgement) -> Judgement:
        """Both together; positions are as given to `judge`."""
        if not self.elements and self.problem is None:
            return other
        if not other.elements and other.problem is None:
            return self
        worse = other if other.fraction > self.fraction else self
        return Judgement(
            **{
                name: getattr(self, name) + getattr(other, name)
                for name in (
                    *("elements", "equal", "beyond", "unlikely", "total", "signal", "noise"),
                    *("product", "power", "telling"),
                )
            },
            largest=max(self.largest, other.largest),
            fraction=max(self.fraction, other.fraction),
            matches={
                name: self.matches[name] + other.matches[name]
                for name in self.matches
                if name in other.matches
            },
            misses={**other.misses, **self.misses},
            histogram=dict(Counter(self.histogram) + Counter(other.histogram)),
            worst=worse.worst or self.worst or other.worst,
            problem=self.problem or other.problem,
            demanded=self.demanded or other.demanded,
        )

    @property
    def reproducing(self) -> list[str]:
        """The schemes that reproduce every element."""
        return [name for name, count in self.matches.items() if count == self.elements]

    @property
    def closest(self) -> str:
        """The scheme that is demanded, else the one that reproduces the most elements."""
        if self.demanded in self.matches:
            return self.demanded
        return max(self.matches, key=lambda name: self.matches[name])

    @property
    def outside(self) -> int:
        """fp32: elements outside their bound. int8: those that the closest scheme leaves over."""
        return self.elements - self.matches[self.closest] if self.matches else self.beyond

    @property
    def first_outside(self) -> Worst | None:
        """An element that is outside, for the report."""
        if self.matches:
            return self.misses.get(self.closest)
        return self.worst if self.beyond else None

    @property
    def passed(self) -> bool:
        """Something was judged, and nothing is outside."""
        return self.problem is None and self.elements > 0 and self.outside == 0

    @property
    def fingerprint(self) -> str:
        """How it rounds, in words; of floats only where inputs are quantized."""
        if not self.matches:
            return ""
        if self.outside:
            return f"{self.outside} unexplained"
        return in_words(self.reproducing, self.matches)

    @property
    def sqnr(self) -> float:
        """Signal to difference in decibels; infinite where there is no difference."""
        if not self.noise:
            return float("inf")
        return float(10 * np.log10(self.signal / self.noise)) if self.signal else -float("inf")

    @property
    def cosine(self) -> float:
        """Of the angle between both, taken as vectors."""
        size = np.sqrt(self.signal) * np.sqrt(self.power)
        return float(self.product / size) if size else 1.0


def in_words(schemes: Sequence[str], candidates: Collection[str]) -> str:
    """Schemes that cannot be told apart. float32 arithmetic counts only where no other is left, and
    where all of the candidates have the same result nothing was rounded.
    """
    named = [name for name in schemes if name != FLOAT32]
    if set(named) == set(candidates) - {FLOAT32}:
        return EXACT
    return " or ".join(named or schemes) or "unexplained"
