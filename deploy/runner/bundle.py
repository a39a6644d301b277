"""A bundle is a folder whose `manifest.json` has the SHA-256 of every other file in it.

The manifest also has a digest of itself, so one changed byte anywhere is found and named. For
sha256sum, and to be signed, `SHA256SUMS` says the same of all files and of the manifest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .contract import PRECISIONS, Contract, default_precision
from .errors import BadInput, Missing, UsageError

MANIFEST = "manifest.json"
RUNNER = "runner.pyz"
SUMS = "SHA256SUMS"
SIGNATURE = "SHA256SUMS.sig"
SCHEMA = 1
FIELDS: dict[str, type | tuple[type, ...]] = {  # of the manifest, at least
    "run": str,
    "pipeline_version": str,
    "contracts": dict,
    "models": dict,
    "int8_steps": (int, float),
    "test_images": int,
    "files": dict,
}
OF_MODELS: dict[str, type | tuple[type, ...]] = {
    "precision": str,
    "accuracy": (int, float),
    "verified_with": str,
    "equal_to_program": (int, float),
}
OF_TARGETS: dict[str, type | tuple[type, ...]] = {"name": str, "hardware": str}
UNPACK_AGAIN = "copy and unpack the bundle again"


def sha256(content: bytes) -> str:
    """Hexadecimal SHA-256."""
    return hashlib.sha256(content).hexdigest()


def seal(manifest: dict[str, Any]) -> bytes:
    """The bytes of manifest.json: canonical JSON, with a digest of everything else in it."""
    body = {key: value for key, value in manifest.items() if key != "digest"}
    digest = sha256(json.dumps(body, sort_keys=True).encode())
    return (json.dumps({**body, "digest": digest}, sort_keys=True, indent=1) + "\n").encode()


def sums(files: dict[str, str], manifest: bytes) -> bytes:
    """The bytes of SHA256SUMS: of the manifest's `files` and of the manifest itself."""
    digests = {**files, MANIFEST: sha256(manifest)}
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(digests.items())).encode()


def _refuse_mistyped(record: Any, known: dict[str, Any], what: str) -> None:
    if not isinstance(record, dict):
        raise ValueError(f"{what} is no object")
    for key, kinds in known.items():
        if key not in record:
            raise ValueError(f"{what} lacks {key!r}")
        # JSON's true is an int to Python
        if not isinstance(record[key], kinds) or isinstance(record[key], bool):
            raise ValueError(f"{key!r} of {what} is {record[key]!r}")


def _refuse_unlike_schema(manifest: dict[str, Any], where: str) -> None:
    """Raises ValueError or BadInput for what is not as `FIELDS` and the contract say."""
    _refuse_mistyped(manifest, FIELDS, "it")
    for part in ("files", "package"):
        digests = manifest.get(part, {})
        names = digests if isinstance(digests, dict) else ()
        _refuse_mistyped(digests, dict.fromkeys(names, str), f"{part!r}")
    for name, model in manifest["models"].items():
        _refuse_mistyped(model, OF_MODELS, name)
        if name not in manifest["files"]:
            raise ValueError(f"{name} is no file of it")
    if {model["precision"] for model in manifest["models"].values()} != set(manifest["contracts"]):
        raise ValueError("its models and contracts are not of the same precisions")
    if not manifest["contracts"]:
        raise ValueError("it has no contracts")
    for precision, contract in manifest["contracts"].items():
        if precision not in PRECISIONS:
            raise ValueError(f"unknown precision {precision!r}")
        Contract.from_json(json.dumps(contract), where)
        if contract["output"] is None and precision in ("int8", "dynamic"):
            _refuse_mistyped(manifest, {f"{precision}_relative": (int, float)}, "it")
    if "int16x8" in manifest["contracts"]:
        _refuse_mistyped(manifest, {"int16x8_steps": (int, float)}, "it")
    if "target" in manifest:
        _refuse_mistyped(manifest["target"], OF_TARGETS, "'target'")


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
        intact = seal(manifest) == content
    except (ValueError, TypeError, AttributeError, RecursionError):
        intact = False
    if not intact:
        raise BadInput(f"{where}/{MANIFEST}: changed or damaged", UNPACK_AGAIN)
    if manifest.get("schema") != SCHEMA:
        raise BadInput(
            f"{where}/{MANIFEST}: schema {manifest.get('schema')!r}, this runner reads {SCHEMA}",
            "take the runner that came with the bundle",
        )
    try:
        _refuse_unlike_schema(manifest, f"{where}/{MANIFEST}")
    except ValueError as error:
        raise BadInput(
            f"{where}/{MANIFEST}: not a bundle's manifest ({error})", "make the bundle again"
        ) from error
    files: dict[str, str] = manifest["files"]
    for name, expected in files.items():
        if name not in names:
            raise BadInput(f"{where}/{name}: missing", UNPACK_AGAIN)
        if sha256(read(name)) != expected:
            raise BadInput(
                f"{where}/{name}: changed or damaged (its SHA-256 is not the manifest's)",
                UNPACK_AGAIN,
            )
    if SUMS in names and read(SUMS) != sums(files, content):
        raise BadInput(f"{where}/{SUMS}: changed or damaged", UNPACK_AGAIN)
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
        """What is taken where none is named."""
        return default_precision(self.manifest["contracts"])
