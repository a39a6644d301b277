"""What a person orders of `pipeline package`, and what the bundle is called."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from deploy.runner.backends import BACKENDS
from deploy.runner.contract import default_precision

from ..errors import UsageError, unknown
from ..precisions import FORMATS, LACKING, USUAL, artefacts, found_in, refuse_without_file
from ..run_exports import exports_of, lacking
from ..run_folder import RunFolder
from .archive import KINDS
from .targets import ARCHITECTURES, DEFAULT, TARGETS, Place, place_of
from .toolchain import GCC, cross_compiler

PACKED = ("onnx", "tflite")  # what a runtime reads as it is


@dataclass(frozen=True)
class Order:
    """What is to be packed: `formats` of onnx, tflite and c. Without a place it is for any 64-bit
    Linux, and C goes along as sources; `wheels`: all that pip would fetch, too. `kind` is one of
    KINDS; `compiler` one of toolchain.COMPILERS, or the first that is here. `lacking` are the
    (precision, format) that there are not.
    """

    formats: tuple[str, ...] = FORMATS
    precisions: tuple[str, ...] = USUAL
    place: Place | None = None
    wheels: bool = False
    kind: str = KINDS[0]
    compiler: str | None = None
    lacking: frozenset[tuple[str, str]] = frozenset(LACKING)

    @classmethod
    def of(
        cls,
        runtimes: Sequence[str],
        precisions: Sequence[str],
        target: str | None = None,
        system: str | None = None,
        wheels: bool = False,
        kind: str = KINDS[0],
        compiler: str | None = None,
    ) -> Order:
        """`runtimes` of onnx, tflite, c; or nothing, for all that the target can run. Raises
        UsageError for what is not possible.
        """
        if kind not in KINDS:
            raise unknown("format", kind, KINDS)
        if target is None and (system is not None or wheels or kind == "deb"):
            raise UsageError("--os, --wheelhouse and deb belong to a --target", "name one")
        if kind == "deb" and wheels:
            raise UsageError(
                "--wheelhouse with --format deb: dpkg runs no pip",
                "leave it out (apt installs python3-numpy), or give --format tar.gz",
            )
        place = place_of(target, system) if target is not None else None
        formats = tuple(runtimes) or (place.formats if place else FORMATS)
        if place is not None:
            place.refuse(formats)
        elif formats == ("c",):
            raise UsageError(
                "C alone is compiled for a target", f"give --target, one of {', '.join(TARGETS)}"
            )
        if wheels and not set(formats) & set(PACKED):
            if runtimes or place is None:
                raise UsageError(
                    "--wheelhouse without a runtime: C needs no wheels", "leave it out"
                )
            older = "" if place.system in ("", DEFAULT) else f", or give --os {DEFAULT}"
            raise UsageError(
                f"--wheelhouse: no runtime has a wheel for {place.label}", f"leave it out{older}"
            )
        if kind == "deb" and place is not None and place.target.wheels not in ARCHITECTURES:
            raise UsageError(
                f"{place.name}: no Debian architecture is known for {place.target.wheels}",
                f"give --format tar.gz, or --target {', '.join(n for n in TARGETS if n != 'host')}",
            )
        refuse_without_file(formats, precisions)
        order = cls(formats, tuple(precisions), place, wheels, kind, compiler)
        order._refuse_without_c()
        return order

    @classmethod
    def as_packed(cls, run: RunFolder, target: str, system: str | None) -> Order | None:
        """That of the .tar.gz of a target that the run has, None where there is none."""
        place = place_of(target, system)
        entry = run.record["artefacts"].get(bundle_name(run, place))
        if entry is None:
            return None
        config = entry["config"]
        kinds, precisions = found_in([*config["models"], *config.get("c", ())], run.model)
        by_gcc = place.target.board and "gcc" in config.get("compiler", "")
        return cls.of(
            kinds,
            precisions,
            target,
            system,
            config["wheels"],
            compiler=GCC if by_gcc else None,
        )

    def of_run(self, run: RunFolder) -> Order:
        """Without C of what a run has none of. Raises UsageError where nothing is left."""
        possible = self.place.formats if self.place else FORMATS
        possible = ("c",) if self.kind == "deb" else possible
        exports_of(run, self.formats, self.precisions, possible)
        order = replace(self, lacking=lacking(run))
        order._refuse_without_c()
        return order

    def _refuse_without_c(self) -> None:
        if self.kind == "deb" and not self.is_native:
            raise UsageError(
                "--format deb without C: what dpkg installs must run at once", self.mend_for_c
            )
        board = self.place is not None and self.place.target.board
        if self.compiler is not None and not (board and self.in_c):
            raise UsageError("--compiler is for the C of a board", "leave it out")

    @property
    def mend_for_c(self) -> str:
        """What adds C to it."""
        return "add fp32 to --precision" if "c" in self.formats else "add c to --runtime"

    @property
    def first(self) -> str:
        """The precision that is taken where none is named."""
        return default_precision(self.precisions)

    @property
    def is_native(self) -> bool:
        """Whether C is compiled for it."""
        return self.place is not None and bool(self.in_c)

    @property
    def in_c(self) -> tuple[str, ...]:
        """The precisions of its C."""
        return tuple(precision for precision, kind in self.artefacts if kind == "c")

    @property
    def artefacts(self) -> list[tuple[str, str]]:
        """(precision, format) of every export in it."""
        return artefacts(self.formats, self.precisions, self.lacking)

    def cross_compiler(self) -> str | None:
        """What compiles its C for a board. Raises UsageError, and Missing where nothing does."""
        if self.place is None or not self.is_native or not self.place.target.board:
            return None
        return cross_compiler(self.place.target.board, self.compiler)

    @property
    def has_python(self) -> bool:
        """Whether the Python runner is in it."""
        return self.place is None or self.place.has_python

    @property
    def runtimes(self) -> list[str]:
        """The runtimes that can be installed for it, the recommended one first."""
        there = self.place.runtimes if self.place else tuple(BACKENDS)
        return [n for n, b in BACKENDS.items() if b.SUFFIX[1:] in self.formats and n in there]


def bundle_stem(run: RunFolder, place: Place | None = None) -> str:
    """The name of a bundle and of the folder in it."""
    return f"{run.model}-{place.label}-bundle" if place else f"{run.model}-bundle"


def bundle_name(run: RunFolder, place: Place | None = None, kind: str = KINDS[0]) -> str:
    """The archive's file name in the run folder."""
    return f"{bundle_stem(run, place)}.{kind}"


def install_name(run: RunFolder) -> str:
    """The name of the folder that install.sh makes: letters, digits, dots, dashes, "_"."""
    return re.sub(r"[^\w.-]+", "-", run.model, flags=re.ASCII)


def package_name(run: RunFolder) -> str:
    """What Debian calls it, and systemd: lower-case letters, digits and dashes, after "pi-"."""
    return f"pi-{re.sub(r'[^a-z0-9]+', '-', run.model.lower()).strip('-') or 'model'}"
