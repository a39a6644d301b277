"""The two forms of a bundle, its signature: what is changed, anywhere, is found and named."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from conftest import key_files
from cryptography.hazmat.primitives.asymmetric.ed448 import Ed448PrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from deploy.runner import bundle
from deploy.runner.contract import Contract
from pipeline.cli import main
from pipeline.package.archive import (
    Link,
    archive,
    check_archive,
    debian_package,
    digests,
    read_archive,
    zipped,
)
from pipeline.package.signature import PASSPHRASE, signing_key

CONTRACT = Contract(
    *("bands", "fp32", "drawn by hand", ("top", "bottom"), (1, 4, 6), "picture", "logits"),
    *(None, None, "0" * 64, "0.1.0"),
)
FILES = {"model.onnx": b"weights" * 9, "classify": b"\x7fELF, as it were"}
OUTSIDE: dict[str, bytes | Link] = {
    "DEBIAN/control": b"Package: pi-bands\n",
    "DEBIAN/postinst": b"#!/bin/sh\n",
    "usr/share/doc/pi-bands/copyright": b"Nobody's\n",
    "usr/bin/pi-bands": Link("/opt/pi-bands/classify"),
}
OTHER: Any = Ed448PrivateKey.generate()  # has the same methods
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def contents(key: Any = None) -> dict[str, bytes]:
    model = {"precision": "fp32", "accuracy": 1.0, "verified_with": "x", "equal_to_program": 1.0}
    files = {name: bundle.sha256(content) for name, content in FILES.items()}
    manifest = {
        "schema": bundle.SCHEMA,
        "run": "by-hand",
        "pipeline_version": "0.1.0",
        "contracts": {"fp32": json.loads(json.dumps(asdict(CONTRACT)))},
        "models": {"model.onnx": model},
        "int8_steps": 1,
        "test_images": 5,
        "files": files,
        "package": digests(OUTSIDE),
    }
    sealed = bundle.seal(manifest)
    found = FILES | {bundle.MANIFEST: sealed, bundle.SUMS: bundle.sums(files, sealed)}
    return found | ({bundle.SIGNATURE: key.sign(found[bundle.SUMS])} if key else {})


def without_package(files: dict[str, bytes]) -> dict[str, bytes]:
    """Of a .tar.gz, which has nothing outside of its folder."""
    manifest = json.loads(files[bundle.MANIFEST])
    del manifest["package"]
    sealed = bundle.seal(manifest)
    return files | {bundle.MANIFEST: sealed, bundle.SUMS: bundle.sums(manifest["files"], sealed)}


def signed(files: dict[str, bytes]) -> dict[str, bytes]:
    return files | {bundle.SIGNATURE: KEY.sign(files[bundle.SUMS])}


PACKED = {
    "b.tar.gz": archive("b", signed(without_package(contents()))),
    "b.deb": debian_package("pi-bands", contents(KEY), OUTSIDE),
}


@pytest.fixture(params=PACKED)
def packed(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / str(request.param)
    path.write_bytes(PACKED[path.name])
    return path


@pytest.fixture
def public(tmp_path: Path) -> Path:
    path = tmp_path / "public.pem"
    path.write_bytes(key_files(KEY)[1])
    return path


def package(*arguments: str | Path) -> Any:
    return CliRunner().invoke(main, ["package", *(str(argument) for argument in arguments)])


def test_an_intact_archive_passes(packed: Path) -> None:
    manifest, found = read_archive(packed)
    assert found["model.onnx"] == FILES["model.onnx"]
    assert set(manifest["files"]) == set(FILES)


def test_a_flipped_bit_anywhere_is_found(packed: Path) -> None:
    intact = packed.read_bytes()
    unnoticed = []
    for position in range(len(intact)):
        damaged = bytearray(intact)
        damaged[position] ^= 1 << position % 8
        packed.write_bytes(damaged)
        try:
            check_archive(packed)
            unnoticed.append(position)
        except bundle.BadInput as error:
            assert str(packed) in str(error) and "\n" not in str(error)
    assert unnoticed == []


def test_the_file_in_which_a_bit_is_flipped_is_named(tmp_path: Path) -> None:
    random = np.random.default_rng(0)
    contents = {name: random.bytes(5000) for name in ("a", "b", "c")}
    sums = "".join(f"{bundle.sha256(content)}  {name}\n" for name, content in contents.items())
    intact = archive("it", contents | {bundle.SUMS: sums.encode()})
    for name, part in (("a", 0.2), ("b", 0.5), ("c", 0.8)):
        damaged = bytearray(intact)
        damaged[int(part * len(intact))] ^= 1
        (tmp_path / "f.tar.gz").write_bytes(damaged)
        with pytest.raises(bundle.BadInput, match=f"damaged or cut off, in it/{name}"):
            check_archive(tmp_path / "f.tar.gz")
    (tmp_path / "f.tar.gz").write_bytes(intact[: len(intact) // 2])
    with pytest.raises(bundle.BadInput, match="in it/b"):
        check_archive(tmp_path / "f.tar.gz")


@pytest.mark.parametrize("kept", [0, 1, 9, 70, 200, -1000, -100, -1])
def test_a_truncated_deb_is_refused(kept: int, tmp_path: Path) -> None:
    (tmp_path / "b.deb").write_bytes(PACKED["b.deb"][:kept])
    done = package("--check", tmp_path / "b.deb")
    assert done.exit_code == 3
    assert "b.deb: " in done.stderr and done.stderr.count("\n") == 1


def test_dpkg_reads_what_was_written(tmp_path: Path) -> None:
    (tmp_path / "b.deb").write_bytes(PACKED["b.deb"])
    try:
        subprocess.run(
            ["dpkg-deb", "--extract", "b.deb", "root"], cwd=tmp_path, check=True, timeout=60
        )
    except FileNotFoundError:
        pytest.skip("no dpkg-deb here")
    assert (tmp_path / "root/opt/pi-bands/model.onnx").read_bytes() == FILES["model.onnx"]
    assert (tmp_path / "root/usr/bin/pi-bands").readlink() == Path("/opt/pi-bands/classify")
    assert (tmp_path / "root/opt/pi-bands/classify").stat().st_mode & 0o777 == 0o755


# --- Changed by somebody who makes all sums right but the manifest's ------------------------------

Changed = Callable[[], bytes]


def deb(files: dict[str, bytes] | None = None, **changed: Any) -> bytes:
    outside = OUTSIDE | {path.replace("__", "/"): entry for path, entry in changed.items()}
    return debian_package("pi-bands", files or contents(KEY), outside)


def with_setuid() -> bytes:
    """Only a mode is another one."""
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(PACKED["b.tar.gz"]))) as tar:
        members = [(member, tar.extractfile(member)) for member in tar.getmembers()]
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as changed:
            for member, content in members:
                member.mode |= 0o4000
                changed.addfile(member, content)
    return zipped(buffer.getvalue())


CHANGES: dict[str, tuple[str, Changed, str]] = {
    "a script": ("b.deb", lambda: deb(DEBIAN__postinst=b"#!/bin/sh\nrm -rf /\n"), "postinst"),
    "one more script": ("b.deb", lambda: deb(DEBIAN__preinst=b"#!/bin/sh\n"), "DEBIAN/preinst"),
    "a link": ("b.deb", lambda: deb(usr__bin__ls=Link("/opt/pi-bands/classify")), "usr/bin/ls"),
    "a link made a file": (
        "b.deb",
        lambda: debian_package(
            "pi-bands", contents(KEY), OUTSIDE | {"usr/bin/pi-bands": b"/opt/pi-bands/classify"}
        ),
        "usr/bin/pi-bands",
    ),
    "a missing file": (
        "b.deb",
        lambda: debian_package(
            "pi-bands", contents(KEY), {k: v for k, v in OUTSIDE.items() if "copyright" not in k}
        ),
        "copyright: missing",
    ),
    "a file of the bundle": (
        "b.deb",
        lambda: deb(contents(KEY) | {"model.onnx": b"others"}),
        "model.onnx: changed",
    ),
    "one more file": (
        "b.tar.gz",
        lambda: archive("b", contents(KEY) | {"more.so": b"x"}),
        "more.so: not in the manifest",
    ),
    "a mode": ("b.tar.gz", with_setuid, "not as it was written"),
    "the sums": (
        "b.tar.gz",
        lambda: archive("b", contents() | {bundle.SUMS: b"0  model.onnx\n"}),
        "SHA256SUMS: changed",
    ),
    "a second member": ("b.deb", lambda: PACKED["b.deb"] + b"\n" * 60, "not a bundle"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_was_changed_is_named(name: str, tmp_path: Path) -> None:
    file, change, named = CHANGES[name]
    (tmp_path / file).write_bytes(change())
    done = package("--check", tmp_path / file)
    assert done.exit_code == 3
    assert named in done.stderr and done.stderr.count("\n") == 1


# --- The signature --------------------------------------------------------------------------------


def test_a_signed_bundle_passes_with_its_makers_key(packed: Path, public: Path) -> None:
    done = package("--check", packed, "--key", public)
    assert done.exit_code == 0
    assert "intact, 2 files, signed by the owner of" in done.stdout


def test_another_key_is_refused(packed: Path, tmp_path: Path) -> None:
    (tmp_path / "other.pem").write_bytes(key_files(Ed25519PrivateKey.generate())[1])
    done = package("--check", packed, "--key", tmp_path / "other.pem")
    assert done.exit_code == 3
    assert "not a signature by the owner of" in done.stderr and done.stderr.count("\n") == 1


def test_a_bundle_resealed_by_somebody_else_is_refused(public: Path, tmp_path: Path) -> None:
    """All sums and hashes are right; only the signature is of what was there before."""
    other = {name: content for name, content in contents().items() if name in FILES}
    other["model.onnx"] = b"other weights"
    manifest = json.loads(contents()[bundle.MANIFEST])
    manifest["files"]["model.onnx"] = bundle.sha256(other["model.onnx"])
    sealed = bundle.seal(manifest)
    other |= {bundle.MANIFEST: sealed, bundle.SUMS: bundle.sums(manifest["files"], sealed)}
    other[bundle.SIGNATURE] = contents(KEY)[bundle.SIGNATURE]
    (tmp_path / "b.deb").write_bytes(debian_package("pi-bands", other, OUTSIDE))
    assert package("--check", tmp_path / "b.deb").exit_code == 0
    done = package("--check", tmp_path / "b.deb", "--key", public)
    assert done.exit_code == 3 and "not a signature" in done.stderr


def test_an_unsigned_bundle_is_refused_with_a_key(public: Path, tmp_path: Path) -> None:
    (tmp_path / "b.tar.gz").write_bytes(archive("b", without_package(contents())))
    assert package("--check", tmp_path / "b.tar.gz").exit_code == 0
    done = package("--check", tmp_path / "b.tar.gz", "--key", public)
    assert done.exit_code == 3 and "not signed (no SHA256SUMS.sig in it)" in done.stderr


BAD_KEYS: dict[str, tuple[bytes | None, int, str]] = {
    "none": (None, 4, "cannot be read"),
    "no PEM": (b"ssh-ed25519 AAAA", 3, "not a public key in PEM"),
    "private": (key_files(KEY)[0], 3, "not a public key in PEM"),
    "another algorithm": (key_files(OTHER)[1], 3, "not of Ed25519"),
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_a_bad_public_key_is_said(name: str, packed: Path, tmp_path: Path) -> None:
    content, code, reason = BAD_KEYS[name]
    if content is not None:
        (tmp_path / "key.pem").write_bytes(content)
    done = package("--check", packed, "--key", tmp_path / "key.pem")
    assert done.exit_code == code
    assert reason in done.stderr and "openssl pkey" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("passphrase", [None, b"a phrase"])
def test_a_key_is_read_from_a_file(
    passphrase: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PASSPHRASE, "a phrase")
    (tmp_path / "k.pem").write_bytes(key_files(KEY, passphrase)[0])
    assert signing_key(tmp_path / "k.pem").sign(b"x") == KEY.sign(b"x")


UNFIT: dict[str, tuple[bytes | None, str, int, str]] = {
    "none": (None, "", 4, "cannot be read"),
    "encrypted": (key_files(KEY, b"a phrase")[0], "", 2, f"give its passphrase in {PASSPHRASE}"),
    "another phrase": (key_files(KEY, b"a phrase")[0], "b", 3, "is not its passphrase"),
    "public": (key_files(KEY)[1], "", 3, "not a private key in PEM"),
    "another algorithm": (key_files(OTHER)[0], "", 3, "not of Ed25519; make one: openssl genpkey"),
    "empty": (b"", "", 3, "not a private key in PEM"),
}


@pytest.mark.parametrize("name", UNFIT)
def test_a_key_that_cannot_sign_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content, phrase, code, reason = UNFIT[name]
    monkeypatch.setenv(PASSPHRASE, phrase)
    if content is not None:
        (tmp_path / "k.pem").write_bytes(content)
    done = package("--target", "host", "--sign", tmp_path / "k.pem")
    assert done.exit_code == code
    assert reason in done.stderr and done.stderr.count("\n") == 1


def test_without_the_package_for_signatures_it_is_said(
    packed: Path, public: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "cryptography.hazmat.primitives", None)
    for arguments in (["--check", packed, "--key", public], ["--target", "host", "--sign", public]):
        done = package(*arguments)
        assert done.exit_code == 4
        assert "pip install cryptography" in done.stderr and done.stderr.count("\n") == 1


MISPLACED: dict[str, tuple[list[str], str]] = {
    "a key alone": (["--key", "k.pem"], "--key belongs to --check"),
    "a target": (["--check", "b.deb", "--target", "host"], "--target does not go with --check"),
    "a signing key": (["--check", "b.deb", "--sign", "k.pem"], "--sign does not go with --check"),
}


@pytest.mark.parametrize("name", MISPLACED)
def test_options_that_do_not_go_together_are_refused(name: str) -> None:
    arguments, reason = MISPLACED[name]
    done = package(*arguments)
    assert done.exit_code == 2
    assert reason in done.stderr and done.stderr.count("\n") == 1
