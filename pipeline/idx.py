"""IDX, the format of MNIST: a big-endian header and bytes, raw or gzipped, here or at a mirror."""

from __future__ import annotations

import gzip
import hashlib
import os
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .errors import BadInput, Missing


@dataclass(frozen=True)
class IdxFile:
    """One file of a data set. `content_sha256` is of the decompressed bytes, so that raw and any
    gzip are accepted; `archive_sha256` is of the gzip that the mirrors serve.
    """

    name: str
    shape: tuple[int, ...]
    content_sha256: str | None = None
    archive_sha256: str | None = None


def load(
    file: IdxFile, folder: str, mirrors: tuple[str, ...], data_dir: Path | None
) -> npt.NDArray[np.uint8]:
    """The array in an IDX file, uint8 of `file.shape`.

    Looks for NAME and NAME.gz in DATA_DIR/FOLDER and DATA_DIR, else fetches it from a mirror into
    the cache. Raises BadInput or Missing, naming the file, what was expected and what was found.
    """
    if data_dir is not None:
        return parse(_find(file, folder, data_dir), file)
    return _fetch(file, folder, mirrors)


def parse(path: Path, file: IdxFile) -> npt.NDArray[np.uint8]:
    """Decompress, check and shape the content of one IDX file. Raises BadInput."""
    mend = "replace it by a fresh copy"
    header = struct.pack(f">HBB{len(file.shape)}I", 0, 8, len(file.shape), *file.shape)
    expected = len(header) + int(np.prod(file.shape))
    try:
        packed = path.read_bytes()
        if file.content_sha256 is None and packed.startswith(b"\x1f\x8b"):
            _check_archive(path, packed, file)
        content = gzip.decompress(packed) if packed.startswith(b"\x1f\x8b") else packed
    except EOFError as error:
        raise BadInput(
            f"{path}: expected {expected} bytes, found a truncated gzip of {len(packed)}", mend
        ) from error
    except (OSError, zlib.error) as error:
        raise BadInput(
            f"{path}: expected {expected} bytes, found a broken file ({error})", mend
        ) from error
    if content[: len(header)] != header:
        raise BadInput(
            f"{path}: expected an IDX header for uint8 of shape {file.shape}, "
            f"found {_header(content)}",
            mend,
        )
    if len(content) != expected:
        raise BadInput(f"{path}: expected {expected} bytes, found {len(content)}", mend)
    found = hashlib.sha256(content).hexdigest()
    if file.content_sha256 is not None and found != file.content_sha256:
        raise BadInput(
            f"{path}: expected content with SHA-256 {file.content_sha256}, found {found}", mend
        )
    return np.frombuffer(content, np.uint8, offset=len(header)).reshape(file.shape)


def _check_archive(path: Path, packed: bytes, file: IdxFile) -> None:
    found = hashlib.sha256(packed).hexdigest()
    if file.archive_sha256 not in (None, found):
        raise BadInput(
            f"{path}: expected the published archive, SHA-256 {file.archive_sha256}, found {found}",
            "replace it by a fresh copy",
        )


def _header(content: bytes) -> str:
    if len(content) < 4 or content[:2] != b"\0\0":
        return f"no IDX header ({content[:4].hex() or 'an empty file'})"
    kind, rank = content[2], content[3]
    if len(content) < 4 + 4 * rank:
        return "a truncated header"
    return f"type {kind:#04x} of shape {struct.unpack(f'>{rank}I', content[4 : 4 + 4 * rank])}"


def _find(file: IdxFile, folder: str, data_dir: Path) -> Path:
    places = [data_dir / folder]
    if file.content_sha256 is not None:  # else any data set of this shape would be taken for it
        places.append(data_dir)
    for place in places:
        for name in (file.name, f"{file.name}.gz"):
            if (place / name).is_file():
                return place / name
    raise Missing(
        f"no {file.name} or {file.name}.gz in {' or '.join(str(place) for place in places)}",
        "put it there, or leave out --data-dir and PIPELINE_DATA_DIR to download it",
    )


def _fetch(file: IdxFile, folder: str, mirrors: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    import pooch

    pooch.get_logger().setLevel("WARNING")
    cache = Path(os.environ.get("PIPELINE_CACHE_DIR", pooch.os_cache("pipeline"))) / folder
    reason = ""
    for mirror in mirrors:
        try:
            path = pooch.retrieve(
                f"{mirror}{file.name}.gz",
                known_hash=f"sha256:{file.archive_sha256}" if file.archive_sha256 else None,
                fname=f"{file.name}.gz",
                path=cache,
            )
            return parse(Path(path), file)
        except (
            OSError,
            ValueError,
        ) as error:  # requests' errors are OSErrors; a hash is a ValueError
            reason = str(error).splitlines()[0]
        except BadInput as error:  # a mirror may answer with something else: nothing of it stays
            reason = error.message
            (cache / f"{file.name}.gz").unlink(missing_ok=True)
    raise Missing(
        f"{file.name}.gz cannot be downloaded ({reason})",
        "get the four files yourself and give their folder with --data-dir",
    )
