"""The two forms that a bundle is copied in, written and read back: .tar.gz, and Debian's .deb.

The same contents are always the same bytes: in order of name, without owners, with one time. A .deb
follows deb(5) and ar(5) of Debian: an ar archive of `debian-binary`, `control.tar.gz` and
`data.tar.gz`. A bundle in it lies in /opt; what is outside of that folder is in the bundle's
manifest, too ("package"), so that nothing that a .deb runs as root goes unchecked.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.runner import bundle

from ..errors import BadInput, Missing
from .native import CLASSIFY

INSTALL = "install.sh"
SCRIPTS = {"postinst", "prerm", "postrm"}  # that dpkg runs, as root
EXECUTABLES = {bundle.RUNNER, INSTALL, CLASSIFY, *SCRIPTS}
KINDS = ("tar.gz", "deb")
# No name, no time, no system; an extra field of 36 bytes, in it "PI" of 32: SHA-256 of the rest.
GZIP_HEADER = bytes.fromhex("1f8b08040000000002ff 2400 5049 2000")
TIME = 315532800  # 1980-01-01, zip's first day: Debian's tools distrust files of 1970
AR = b"!<arch>\n"
OPT, DEBIAN = "opt/", "DEBIAN/"
VERSION = b"2.0\n"  # of the format of .deb
MEND = "copy the bundle again"
FEW = 64  # bytes that are unpacked at once, since all of them are lost where one is damaged


@dataclass(frozen=True)
class Link:
    """A symbolic link in a .deb."""

    to: str


Tree = Mapping[str, bytes | Link]


def digests(outside: Tree) -> dict[str, str]:
    """SHA-256 of what a .deb has outside of the bundle's folder, for the manifest."""
    return {
        name: bundle.sha256(f"link to {entry.to}".encode() if isinstance(entry, Link) else entry)
        for name, entry in outside.items()
    }


def archive(folder: str, contents: Mapping[str, bytes]) -> bytes:
    """A .tar.gz of the contents below `folder`."""
    return zipped(_tar({f"{folder}/{name}": content for name, content in contents.items()}))


def debian_package(name: str, contents: Mapping[str, bytes], outside: Tree) -> bytes:
    """A .deb with the contents in /opt/`name`, and `outside` of it: files by their path, those that
    dpkg itself reads below DEBIAN/.
    """
    control, data = _trees(name, contents, outside)
    return _ar(
        {
            "debian-binary": VERSION,
            "control.tar.gz": zipped(_tar(control, TIME, folders=True)),
            "data.tar.gz": zipped(_tar(data, TIME, folders=True)),
        }
    )


def check_archive(path: Path) -> dict[str, Any]:
    """Check a bundle of either form without unpacking it, and return its manifest.

    Raises Missing or BadInput naming the file that is wrong.
    """
    return read_archive(path)[0]


def read_archive(path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """As `check_archive`; the manifest and the files of the bundle."""
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise Missing(
            f"{path}: cannot be read ({error.strerror})", "name a bundle, a .tar.gz or a .deb"
        ) from error
    if not packed:
        raise BadInput(f"{path}: the file is empty", MEND)
    try:
        found = _opened_deb(packed) if packed.startswith(AR[:4]) else _opened_tar(packed)
    except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError) as error:
        raise BadInput(f"{path}: not a bundle that is whole ({error})", MEND) from error
    contents = found.contents
    manifest = bundle.check(contents.__getitem__, set(contents), str(path))
    known = {*manifest["files"], bundle.MANIFEST, bundle.SUMS, bundle.SIGNATURE}
    for name in sorted(set(contents) - known):
        raise BadInput(f"{path}/{name}: not in the manifest", MEND)
    stated = manifest.get("package", {})
    there = digests(found.outside)
    for name in sorted({*stated, *there}):
        if stated.get(name) != there.get(name):
            what = "missing" if name not in there else "changed, or not in the manifest"
            raise BadInput(f"{path}/{name}: {what}", MEND)
    for name, read, written in found.tars():
        if read != written:
            raise BadInput(f"{path}: {name} is not as it was written (modes, or an addition)", MEND)
    return manifest, contents


@dataclass(frozen=True)
class _Opened:
    """What was in an archive: `found` has its tar files, by name."""

    folder: str
    found: dict[str, bytes]
    contents: dict[str, bytes]
    outside: dict[str, bytes | Link] = field(default_factory=dict)

    def tars(self) -> list[tuple[str, bytes, bytes]]:
        """(name, as it was found, as it is written here) of each tar file."""
        if "tar" in self.found:
            files = {f"{self.folder}/{name}": content for name, content in self.contents.items()}
            return [("the archive", self.found["tar"], _tar(files))]
        names = ("control.tar.gz", "data.tar.gz")
        trees = _trees(self.folder, self.contents, self.outside)
        return [
            (name, self.found[name], _tar(tree, TIME, folders=True))
            for name, tree in zip(names, trees, strict=True)
        ]


def _opened_tar(packed: bytes) -> _Opened:
    tar = _unzipped(packed, "it")
    contents = {}
    folder = ""
    for name, entry in _entries(tar).items():
        folder, _, rest = name.partition("/")
        if isinstance(entry, bytes):
            contents[rest] = entry
    return _Opened(folder, {"tar": tar}, contents)


def _opened_deb(packed: bytes) -> _Opened:
    members = _members(packed)
    if list(members) != ["debian-binary", "control.tar.gz", "data.tar.gz"]:
        raise ValueError(f"it has {', '.join(members)}")
    if members["debian-binary"] != VERSION:
        raise ValueError("debian-binary is not 2.0")
    tars = {name: _unzipped(members[name], name) for name in list(members)[1:]}
    outside = {f"{DEBIAN}{k}": v for k, v in _entries(tars["control.tar.gz"]).items()}
    outside.pop(f"{DEBIAN}md5sums", None)  # follows from the rest
    contents = {}
    name = ""
    for path, entry in _entries(tars["data.tar.gz"]).items():
        if path.startswith(OPT) and isinstance(entry, bytes):
            name, _, rest = path.removeprefix(OPT).partition("/")
            contents[rest] = entry
        else:
            outside[path] = entry
    return _Opened(name, tars, contents, outside)


def _trees(name: str, contents: Mapping[str, bytes], outside: Tree) -> tuple[Tree, Tree]:
    """The files of control.tar and of data.tar; the sums are those that `dpkg --verify` reads."""
    control = {k.removeprefix(DEBIAN): v for k, v in outside.items() if k.startswith(DEBIAN)}
    data: dict[str, bytes | Link] = {f"{OPT}{name}/{k}": v for k, v in contents.items()}
    data |= {k: v for k, v in outside.items() if not k.startswith(DEBIAN)}
    sums = [
        f"{hashlib.md5(entry, usedforsecurity=False).hexdigest()}  {path}\n"
        for path, entry in sorted(data.items())
        if isinstance(entry, bytes)
    ]
    return control | {"md5sums": "".join(sums).encode()}, data


def _tar(tree: Tree, time: int = 0, *, folders: bool = False) -> bytes:
    """A tar file; with `folders` as in a .deb: they have entries, and paths begin with a dot."""
    entries: dict[str, bytes | Link | None] = dict(tree)
    if folders:
        parents = (parent for name in tree for parent in PurePosixPath(name).parents)
        entries |= dict.fromkeys(parent.as_posix() for parent in parents)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(entries, key=lambda name: "" if name == "." else name):
            entry = entries[name]
            info = tarfile.TarInfo(f"./{name}" if folders and name != "." else name)
            info.mtime = time
            runs = entry is None or PurePosixPath(name).name in EXECUTABLES
            info.mode = 0o755 if runs else 0o644
            content = b""
            if entry is None:
                info.type = tarfile.DIRTYPE
            elif isinstance(entry, Link):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, entry.to, 0o777
            else:
                content = entry
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def _entries(tar: bytes) -> dict[str, bytes | Link]:
    """Files and links of a tar file."""
    found: dict[str, bytes | Link] = {}
    with tarfile.open(fileobj=io.BytesIO(tar), mode="r:") as members:
        for member in members.getmembers():
            content = members.extractfile(member) if member.isreg() else None
            name = member.name.removeprefix("./")
            if content is not None:
                found[name] = content.read()
            elif not member.isdir():
                found[name] = Link(member.linkname)
    return found


def zipped(content: bytes) -> bytes:
    """As gzip does it, without a name, a time or a system.

    A flipped bit in compressed bytes may leave the same content, which gzip's own sum does not
    find. Hence their SHA-256, in a field that gzip passes over (RFC 1952, "extra field").
    """
    body = gzip.compress(content, mtime=0)[10:]
    return GZIP_HEADER + hashlib.sha256(body).digest() + body


def _unzipped(packed: bytes, name: str) -> bytes:
    start = len(GZIP_HEADER)
    if not packed.startswith(GZIP_HEADER):
        raise ValueError(f"{name} does not begin as a bundle does")
    if hashlib.sha256(packed[start + 32 :]).digest() != packed[start : start + 32]:
        raise ValueError(f"{name} is damaged or cut off, {_where(packed[start + 32 :])}")
    return gzip.decompress(packed)


def _where(body: bytes) -> str:
    """The file in which damage shows first: what there is of it is not what SHA256SUMS says, or
    nothing can be read after it.
    """
    inflater, tar = zlib.decompressobj(-zlib.MAX_WBITS), bytearray()
    try:
        for start in range(0, len(body), FEW):
            tar += inflater.decompress(body[start : start + FEW])
    except zlib.error:
        pass
    sums: dict[str, str] = {}
    position, name = 0, "its first file"
    while any(tar[position : position + tarfile.BLOCKSIZE]):
        try:
            header = tar[position : position + tarfile.BLOCKSIZE]
            member = tarfile.TarInfo.frombuf(bytes(header), "utf-8", "replace")
        except tarfile.HeaderError:
            return f"after {name}"
        start = position + tarfile.BLOCKSIZE
        content, name = bytes(tar[start : start + member.size]), member.name
        _, _, inner = name.removeprefix(f"./{OPT}").partition("/")
        if sums.get(inner, bundle.sha256(content)) != bundle.sha256(content):
            return f"in {name}"
        if inner == bundle.SUMS:
            lines = content.decode(errors="replace").splitlines()
            sums = {line[66:]: line[:64] for line in lines}
        position = start + -(-member.size // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE
    return f"in or after {name}"


def _ar(members: Mapping[str, bytes]) -> bytes:
    """An ar archive: for each member 60 bytes of text, and its content, at an even position."""
    parts = [AR]
    for name, content in members.items():
        header = f"{name:<16}{TIME:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        parts += [header.encode(), content, b"\n" * (len(content) % 2)]
    return b"".join(parts)


def _members(packed: bytes) -> dict[str, bytes]:
    """Of an ar archive that is written as `_ar` does. Raises ValueError for any other."""
    found: dict[str, bytes] = {}
    position = len(AR)
    while position < len(packed):
        header = packed[position : position + 60].decode("ascii")
        name, size = header[:16].rstrip(), header[48:58].rstrip()
        if not size.isdigit():
            raise ValueError(f"the size of its {name!r} is {size!r}")
        position += 60
        found[name] = packed[position : position + int(size)]
        position += int(size) + int(size) % 2
    if _ar(found) != packed:
        raise ValueError("the headers in it are not a bundle's, or it is cut off")
    return found
