"""A bundle is a folder whose `manifest.json` has the SHA-256 of every other file in it.

The manifest also has a digest of itself, so one changed byte anywhere is found and named.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contract import Contract
from .errors import BadInput, Missing, UsageError

MANIFEST = "manifest.json"
SCHEMA = 1
UNPACK_AGAIN = "copy and unpack the bundle again"


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def seal(manifest: dict[str, Any]) -> bytes:
    """The bytes of manifest.json: canonical JSON, with a digest of everything else in it."""
    body = {key: value for key, value in manifest.items() if key != "digest"}
    digest = sha256(json.dumps(body, sort_keys=True).encode())
    return (json.dumps({**body, "digest": digest}, sort_keys=True, indent=1) + "\n").encode()


def check(read: Callable[[str], bytes], names: set[str], where: str) -> dict[str, Any]:
    """Check every file of a bundle against its manifest, and return the manifest.

    `read` gives the bytes of a named file and `names` are all files there are. Raises Missing
    without a manifest, BadInput naming the first file that is wrong.
    """
    if MANIFEST not in names:
        raise Missing(f"{where}: no {MANIFEST}", "point --bundle at an unpacked bundle")
    content = read(MANIFEST)
    try:
        manifest: dict[str, Any] = json.loads(content)
        intact = seal(manifest) == content and manifest["schema"] == SCHEMA
        files: dict[str, str] = dict(manifest["files"])
    except (ValueError, KeyError, TypeError, AttributeError):
        intact = False
    if not intact:
        raise BadInput(f"{where}/{MANIFEST}: changed or damaged", UNPACK_AGAIN)
    for name, expected in files.items():
        if name not in names:
            raise BadInput(f"{where}/{name}: missing", UNPACK_AGAIN)
        if sha256(read(name)) != expected:
            raise BadInput(
                f"{where}/{name}: changed or damaged (its SHA-256 is not the manifest's)",
                UNPACK_AGAIN,
            )
    return manifest


@dataclass(frozen=True)
class Bundle:
    """A checked bundle folder."""

    folder: Path
    manifest: dict[str, Any]

    @classmethod
    def open(cls, folder: Path) -> Bundle:
        """Read and check all files of the folder. Raises Missing or BadInput."""
        if not folder.is_dir():
            raise Missing(f"{folder}: no such folder", "point --bundle at an unpacked bundle")
        names = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        try:
            return cls(folder, check(lambda name: (folder / name).read_bytes(), names, str(folder)))
        except OSError as error:
            raise BadInput(f"{error.filename}: cannot be read ({error.strerror})") from error

    def models(self, precision: str) -> dict[str, Path]:
        """The model files of this precision: suffix to path."""
        found = {
            Path(name).suffix: self.folder / name
            for name, model in self.manifest["models"].items()
            if model["precision"] == precision
        }
        if not found:
            there = sorted({model["precision"] for model in self.manifest["models"].values()})
            raise UsageError(f"no {precision} model in this bundle", f"it has {', '.join(there)}")
        return found

    def contract(self, precision: str) -> Contract:
        """The contract of this precision, as the manifest states it."""
        record = self.manifest["contracts"][precision]
        return Contract.from_json(json.dumps(record), str(self.folder / MANIFEST))

    def default_precision(self) -> str:
        """int8 where the bundle has it."""
        return "int8" if "int8" in self.manifest["contracts"] else "fp32"
