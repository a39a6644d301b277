"""Packages for dpkg, and what every bundle tells of itself: parts list, notices, unit."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import uuid
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, distribution
from itertools import pairwise
from pathlib import Path
from typing import Any

import onnx
import pytest
from conftest import Cli
from onnx import helper

import deploy
import pipeline.package
from deploy.runner import bundle
from pipeline.errors import BadInput
from pipeline.package import check_archive, targets
from pipeline.package.archive import read_archive
from pipeline.package.licences import WHEELS, wheels_of
from pipeline.package.order import package_name
from pipeline.package.sbom import sbom
from pipeline.package.service import service, serving
from pipeline.run_folder import RunFolder

NAME = "pi-lenet5-classic"
REQUIREMENTS = sorted((Path(deploy.__file__).parent / "requirements").glob("*.txt"))
needs_dpkg = pytest.mark.skipif(shutil.which("dpkg") is None, reason="there is no dpkg")
Make = Callable[..., Path]


@pytest.fixture
def make(packed: Path, cli: Cli, runs: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes a .deb for `host`, signed, of the very files that were compiled for `packed`."""
    files = read_archive(packed)[1]
    compiled = re.compile(r"classify|include/.*|.*\.so")
    native = {name: content for name, content in files.items() if compiled.fullmatch(name)}
    monkeypatch.setattr(pipeline.package, "native_files", lambda *_: dict(native))

    def call() -> Path:
        options = ["--target", "host", "--runtime", "c", "--precision", "int8", "--format", "deb"]
        done = cli("package", *options, "--sign", str(packed.parents[2] / "private.pem"))
        assert done.returncode == 0, done.stderr
        return runs / "small" / "lenet5-classic-host-bundle.deb"

    return call


def dpkg(root: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """dpkg on another root, in which there is no C library for it to find."""
    forced = ["--force-script-chrootless", "--force-depends", "--force-not-root"]
    command = ["dpkg", f"--root={root}", *forced, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def left_in(root: Path) -> list[str]:
    """Files and links, but for dpkg's own notes."""
    paths = (path.relative_to(root).as_posix() for path in root.rglob("*"))
    return sorted(p for p in paths if not p.startswith("var") and not (root / p).is_dir())


@pytest.mark.slow
@needs_dpkg
def test_a_deb_is_installed_and_removed_without_a_trace(make: Make, tmp_path: Path) -> None:
    package, root = make(), tmp_path / "root"
    root.mkdir()
    done = dpkg(root, "--install", package)
    assert done.returncode == 0, done.stderr
    classify = root / "opt" / NAME / "classify"
    assert (
        subprocess.run([classify, "--selftest"], capture_output=True, check=False).returncode == 0
    )
    assert bundle.Bundle.open(classify.parent).manifest["target"]["name"] == "host"
    assert (root / "usr/bin" / NAME).readlink() == Path(f"/opt/{NAME}/classify")
    verified = dpkg(root, "--verify", NAME)
    assert (verified.returncode, verified.stdout) == (0, "")
    done = dpkg(root, "--purge", NAME)
    assert done.returncode == 0, done.stderr
    assert left_in(root) == []


@needs_dpkg
def test_a_deb_for_another_board_says_so_and_is_not_configured(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = pipeline.package.native_files(None, None, None, None)  # type: ignore[arg-type]
    other = native | {"classify": b"\x7fELF, but of another machine"}
    monkeypatch.setattr(pipeline.package, "native_files", lambda *_: dict(other))
    monkeypatch.setattr(pipeline.package, "try_out", lambda *_: None)
    root = tmp_path / "root"
    root.mkdir()
    done = dpkg(root, "--install", make())
    assert done.returncode != 0
    said = f"error: {NAME} does not compute here what was trained: it is for a machine like this"
    assert said in done.stderr
    state = dpkg(root, "--status", NAME).stdout
    assert "Status: install ok half-configured" in state


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("lintian") is None, reason="there is no lintian")
def test_lintian_finds_no_errors_and_no_warnings(make: Make) -> None:
    done = subprocess.run(
        ["lintian", "--fail-on", "error,warning", "--allow-root", str(make())],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_a_deb_is_the_same_bytes_again_and_follows_its_options(
    make: Make, cli: Cli, packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = make()
    first = package.read_bytes()
    modified = package.stat().st_mtime_ns
    assert make().stat().st_mtime_ns == modified  # current: not made again
    package.unlink()
    assert make().read_bytes() == first
    done = cli("package", "--check", str(package), "--key", str(packed.parents[2] / "public.pem"))
    assert done.returncode == 0, done.stderr
    monkeypatch.setenv("DEBFULLNAME", "A Person")
    monkeypatch.setenv("DEBEMAIL", "person@example.org")
    assert b"" != make().read_bytes() != first
    monkeypatch.setenv("DEBEMAIL", "no address")
    done = cli("package", "--target", "host", "--format", "deb")
    assert done.returncode == 2
    assert "DEBFULLNAME and DEBEMAIL" in done.stderr and done.stderr.count("\n") == 1


@needs_dpkg
@pytest.mark.slow
def test_the_deb_of_a_later_export_has_the_higher_version(
    make: Make, runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the hash of its contents is."""

    def version() -> str:
        command = ["dpkg-deb", "--field", make(), "Version"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    native = pipeline.package.native_files(None, None, None, None)  # type: ignore[arg-type]
    versions = [version()]
    for year in range(2050, 2055):
        record = json.loads((runs / "small" / "run.json").read_text())
        record["artefacts"]["lenet5-classic-int8-c"]["made"] = f"{year}-01-01T00:00:00Z"
        (runs / "small" / "run.json").write_text(json.dumps(record))
        other = native | {"include/other.h": str(year).encode()}
        monkeypatch.setattr(pipeline.package, "native_files", lambda *_, o=other: dict(o))
        versions.append(version())
    for older, newer in pairwise(versions):
        compared = ["dpkg", "--compare-versions", older, "lt", newer]
        assert subprocess.run(compared, check=False).returncode == 0, (older, newer)


def test_a_processor_that_debian_has_no_name_for_is_refused(
    make: Make, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.package.order.ARCHITECTURES", {})
    options = ["--runtime", "c", "--precision", "int8"]
    done = cli("package", "--target", "host", "--format", "deb", *options)
    assert done.returncode == 2
    assert f"no Debian architecture is known for {platform.machine()}" in done.stderr
    assert "give --format tar.gz" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("model", "name"),
    [("lenet5", "pi-lenet5"), ("My_Net.v2", "pi-my-net-v2"), ("Ünï", "pi-n"), ("名", "pi-model")],
)
def test_a_packages_name_is_one_that_debian_takes(model: str, name: str, tmp_path: Path) -> None:
    assert package_name(RunFolder(tmp_path, {"model": model})) == name


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_takes_the_unit_of_a_deb(tmp_path: Path) -> None:
    unit = tmp_path / "pi-lenet5.service"
    unit.write_bytes(service("lenet5", "/opt/pi-lenet5", of_user=False))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(unit)], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "DynamicUser=yes" in unit.read_text() and "multi-user.target" in unit.read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_takes_the_unit_that_serves(tmp_path: Path) -> None:
    unit = tmp_path / "serve.service"
    unit.write_bytes(serving("lenet5", "pi-lenet5", "/opt/a/current/bundle"))
    environment = {"HOME": str(tmp_path), "XDG_RUNTIME_DIR": str(tmp_path)}
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(unit)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    text = unit.read_text()
    for line in ("NoNewPrivileges=yes", "ProtectSystem=strict", "Restart=on-failure"):
        assert f"\n{line}\n" in text
    assert "\nExecStart=env ../venv/bin/python runner.pyz serve $OPTIONS\n" in text
    assert "\nMemoryMax=" in text and "\nEnvironmentFile=-%E/pi-lenet5.env\n" in text


# --- Notices and parts ----------------------------------------------------------------------------


def test_every_wheel_of_the_requirements_has_the_licence_that_it_states_itself() -> None:
    wheels = wheels_of(path.read_bytes() for path in REQUIREMENTS)
    assert {wheel.name for wheel in wheels} == set(WHEELS)
    assert sum(path.read_text().count("==") for path in REQUIREMENTS) >= len(wheels) > 10
    compared = 0
    for wheel in wheels:
        assert wheel.licence and wheel.sha256
        try:
            stated = distribution(wheel.name).metadata.get("License-Expression")
        except PackageNotFoundError:
            continue
        if stated:
            assert stated.startswith(wheel.licence), wheel.name
            compared += 1
    assert compared >= 4


SPDX = {"Apache-2.0", "MIT", "BSD-3-Clause", "BSD-2-Clause", "MPL-2.0", "PSF-2.0", "MIT-CMU"}
SPDX |= {"LGPL-2.1-or-later", "LLVM-exception", "ZPL-2.1"}
COMPONENTS = {"application", "library", "machine-learning-model"}  # some of the schema's


def check_cyclonedx(document: dict[str, Any]) -> None:
    """What the schema of CycloneDX 1.6 requires of the fields that are used."""
    assert document["bomFormat"] == "CycloneDX" and document["specVersion"] == "1.6"
    serial = document["serialNumber"].removeprefix("urn:uuid:")
    assert uuid.UUID(serial).version == 5
    assert isinstance(document["version"], int) and document["version"] >= 1
    components = [document["metadata"]["component"], *document["components"]]
    for component in components:
        assert component["type"] in COMPONENTS
        assert component["name"] and component["version"]
        for known in component.get("hashes", []):
            assert known["alg"] == "SHA-256" and re.fullmatch("[0-9a-f]{64}", known["content"])
        for licence in component.get("licenses", []):
            words = re.split(r" AND | OR | WITH ", licence["expression"])
            assert set(words) <= SPDX
        assert component.get("scope", "required") in ("required", "optional")
    references = [component["bom-ref"] for component in components]
    assert len(set(references)) == len(references)
    (dependency,) = document["dependencies"]
    assert [dependency["ref"], *dependency["dependsOn"]] == references


def test_a_bundle_lists_its_parts_with_their_hashes(packed: Path) -> None:
    manifest, contents = read_archive(packed)
    document = json.loads(contents["sbom.cdx.json"])
    check_cyclonedx(document)
    parts = {component["name"]: component for component in document["components"]}
    assert parts["lenet5-classic-int8.so"]["type"] == "machine-learning-model"
    for name in ("lenet5-classic-int8.so", "runner.pyz", "classify"):
        assert parts[name]["hashes"] == [{"alg": "SHA-256", "content": manifest["files"][name]}]
    library = platform.libc_ver()[0] or "musl"
    assert parts[library]["description"] == "inside of classify"
    assert f"classify contains {library}" in contents["NOTICES"].decode()


def test_a_wheel_that_is_packed_is_listed_with_its_own_hash() -> None:
    wheels = wheels_of(path.read_bytes() for path in REQUIREMENTS)
    contents = {
        "m.onnx": b"model",
        "c/m-int8-c/layers.c": b"int x;",
        "wheels/ml_dtypes-0.6.0-cp311-cp311-linux.whl": b"the wheel",
    }
    made = sbom("b", ["m.onnx"], contents, [], wheels)
    assert made == sbom("b", ["m.onnx"], contents, [], wheels)
    document = json.loads(made)
    check_cyclonedx(document)
    parts = {component["name"]: component for component in document["components"]}
    assert "c/m-int8-c" in parts
    packed = parts["ml-dtypes"]
    assert packed["hashes"] == [{"alg": "SHA-256", "content": bundle.sha256(b"the wheel")}]
    assert packed["purl"] == "pkg:pypi/ml-dtypes@0.6.0" and "scope" not in packed
    assert parts["onnxruntime"]["scope"] == "optional"
    assert len(parts["onnxruntime"]["hashes"]) > 1
    contents["m.onnx"] = b"another"
    other = json.loads(sbom("b", ["m.onnx"], contents, [], wheels))
    assert other["serialNumber"] != document["serialNumber"]


# --- What the device's ONNX Runtime reads ---------------------------------------------------------


def onnx_model(ir: int, opset: int) -> bytes:
    sides = [helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1]) for n in "ab"]
    graph = helper.make_graph([helper.make_node("Relu", ["a"], ["b"])], "g", sides[:1], sides[1:])
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    model: bytes = helper.make_model(graph, opset_imports=opsets, ir_version=ir).SerializeToString()
    return model


def test_the_table_says_what_this_onnxruntime_reads() -> None:
    import onnxruntime

    newest = targets.ONNX_READ[".".join(onnxruntime.__version__.split(".")[:2])]

    def loads(ir: int, opset: int) -> bool:
        try:
            onnxruntime.InferenceSession(onnx_model(ir, opset), providers=["CPUExecutionProvider"])
        except Exception:  # of many types
            return False
        return True

    onnxruntime.set_default_logger_severity(4)
    assert loads(newest.ir, newest.opset)
    assert not loads(newest.ir + 1, newest.opset) and not loads(newest.ir, newest.opset + 1)


def test_a_file_that_is_too_new_for_the_device_is_refused() -> None:
    targets.refuse_newer("m.onnx", onnx_model(13, 26))
    with pytest.raises(BadInput, match=r"m\.onnx: IR 14, .* reads up to 13; export it again"):
        targets.refuse_newer("m.onnx", onnx_model(14, 26))
    with pytest.raises(BadInput, match=r"m\.onnx: opset 27, .* reads up to 26; export it again"):
        targets.refuse_newer("m.onnx", onnx_model(13, 27))


def test_package_refuses_a_run_that_is_too_new_for_the_device(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = targets.Newest(ir=9, opset=19)
    monkeypatch.setattr(targets, "ONNX_READ", dict.fromkeys(targets.ONNX_READ, older))
    done = cli("package", "--runtime", "onnx", "--precision", "fp32")
    assert done.returncode == 3
    assert "lenet5-classic-fp32.onnx: IR 10" in done.stderr and done.stderr.count("\n") == 1


def test_a_bundle_for_any_system_has_sums_notices_and_parts(cli: Cli, runs: Path) -> None:
    assert cli("package", "--runtime", "onnx", "--precision", "fp32").returncode == 0
    archive = runs / "small" / "lenet5-classic-bundle.tar.gz"
    check_archive(archive)
    _, contents = read_archive(archive)
    assert {"SHA256SUMS", "NOTICES", "sbom.cdx.json"} <= set(contents)
    assert b"onnxruntime 1." in contents["NOTICES"] and b"litert" not in contents["NOTICES"]
