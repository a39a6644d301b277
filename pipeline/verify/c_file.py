"""Generated C with its layers laid open.

Nothing is generated or compiled for that: the very library is stepped through, and a layer alone is
that step, on values that are put where it reads them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from deploy.runner.backends import Session, TensorInfo
from deploy.runner.backends.c import CSession
from deploy.runner.backends.session import check_values

from ..errors import BadInput
from .layers import Layer, Network
from .merged import merged
from .runtimes import JUDGED, Configuration, Opener, Runtimes

Array = npt.NDArray[Any]


def opened_library(runtimes: Runtimes, content: bytes) -> CSession:
    """A library as it ships. Raises BadInput, Missing."""
    return _c(runtimes.open(JUDGED["c"][0], content, "library.so"))


def configurations(known: Sequence[Configuration], session: CSession) -> list[Configuration]:
    """Of those that are known the ones that this processor can run: the best, and other sets."""
    others = set(session.sets) - {session.kernels}
    return [c for c in known if c.kernels == "best" or c.kernels in others]


class CFile:
    """`content` is a library, `session` it, opened; values have the layout of the program.

    Layers whose value the C never has are judged with the one that follows, see `merged`.
    """

    suffix = ".so"

    def __init__(self, content: bytes, name: str, session: CSession, network: Network) -> None:
        if len(session.inputs) != 1 or len(session.outputs) != 1:
            raise BadInput(f"{name}: {len(session.inputs)} inputs, {len(session.outputs)} outputs")
        self.content, self.network = content, network
        self.differing = merged(network, {made for _, _, made in session.layers})
        self._image = session.inputs[0].name

    def lay_open(self, opener: Opener) -> list[Session]:
        """The library, stepped through."""
        return [Observed(_c(opener(self.content, "observed.so")), self._values)]

    @property
    def _values(self) -> list[str]:
        """The values of the layers that have one of their own, by the C's names."""
        return [layer.value for layer in self._present]

    @property
    def _present(self) -> list[Layer]:
        hidden = {part.name for layer in self.differing.values() for part in layer.merged[:-1]}
        return [layer for layer in self.network.layers if layer.name not in hidden]

    def split(self, outputs: list[list[Array]]) -> tuple[Array, dict[str, Array]]:
        """The output, and the value of each layer that has one."""
        ((final, *rest),) = outputs
        return final, {layer.name: v for layer, v in zip(self._present, rest, strict=True)}

    def cut_out(self, layer: Layer, opener: Opener) -> Session:
        """One layer alone, or several that are computed as one."""
        names = [self.network.values[name] for name in layer.inputs]
        names = [self._image if name == self.network.image else name for name in names]
        return Step(_c(opener(self.content, "slice.so")), names, layer.value)

    def given(self, name: str, values: Array) -> Array:
        """As it is."""
        del name
        return values

    def canonical(self, name: str, values: Array) -> Array:
        """As it is."""
        del name
        return values

    def image(self, values: Array) -> Array:
        """As it is."""
        return values


@dataclass(frozen=True)
class Observed:
    """A library whose outputs are its own and the values of layers."""

    inner: CSession
    names: Sequence[str]

    @property
    def runtime(self) -> str:
        """Name and version."""
        return self.inner.runtime

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """The library's own."""
        return self.inner.inputs

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """The library's own, then the layers'."""
        return (*self.inner.outputs, *(self.inner.values[name] for name in self.names))

    def run(self, *values: Array) -> list[Array]:
        """See `deploy.runner.backends.session.Session`."""
        outputs, found = self.inner.observe(*values)
        return [*outputs, *(found[name] for name in self.names)]


@dataclass(frozen=True)
class Step:
    """The part of a library that makes one value from others."""

    inner: CSession
    given: Sequence[str]
    made: str

    @property
    def runtime(self) -> str:
        """Name and version."""
        return self.inner.runtime

    @property
    def inputs(self) -> tuple[TensorInfo, ...]:
        """What the layer reads."""
        return tuple(self.inner.values[name] for name in self.given)

    @property
    def outputs(self) -> tuple[TensorInfo, ...]:
        """Its value."""
        return (self.inner.values[self.made],)

    def run(self, *values: Array) -> list[Array]:
        """See `deploy.runner.backends.session.Session`."""
        check_values(self.inputs, values)
        fed: Mapping[str, Array] = dict(zip(self.given, values, strict=True))
        return [self.inner.compute(self.made, fed)]


def _c(session: Any) -> CSession:
    """What the runner opened a library as, or what stands for it in a test."""
    found: CSession = session
    return found
