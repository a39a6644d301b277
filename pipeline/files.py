"""Files that are written whole or not at all, and their digests."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .errors import BadInput


def sha256_file(path: Path) -> str:
    """Hexadecimal SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_files(folder: Path, names: Sequence[str]) -> str:
    """SHA-256 of some of a folder's files, names and bytes. Raises FileNotFoundError."""
    digests = [f"{sha256_file(folder / name)}  {name}\n" for name in sorted(names)]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def digest_of(path: Path, files: Sequence[str] | None) -> str:
    """Of a file; or of a folder, in which only `files` count: what is built there may come and go.
    Nothing where a file is gone.
    """
    try:
        return sha256_file(path) if files is None else sha256_files(path, files)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        return ""


def make_folder(path: Path) -> None:
    """A folder below that of the runs, unless it is there. Raises BadInput."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be created ({error.strerror})",
            "give another place with PIPELINE_RUNS_DIR",
        ) from error


def replace_folder(source: Path, place: Path) -> None:
    """A finished folder to where an older one may be, which then is gone. Raises OSError, and then
    the older one is still there.
    """
    old = place.with_name(f".{place.name}.{secrets.token_hex(4)}.old")
    if place.exists():
        place.replace(old)
    try:
        source.replace(place)
    except OSError:
        if old.exists():
            old.replace(place)
        raise
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that replaces it, whole, when the block succeeds.

    Whatever happens, `path` is the old file or the new one. Raises BadInput where it cannot be
    written.
    """
    # The suffix stays last: exporters look at it.
    temporary = path.with_name(f".{path.stem}.{secrets.token_hex(4)}.tmp{path.suffix}")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise BadInput(
            f"{path}: cannot be written ({error.strerror or error})",
            "make room, or give another place with PIPELINE_RUNS_DIR",
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_atomically(path: Path, content: bytes) -> None:
    """Replace `path` by `content`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)
