"""Bundles for boards: what is in them, what is refused, and their installation."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Cli, called
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import deploy
import pipeline.package
from deploy.runner.bundle import MANIFEST, SUMS, seal, sha256, sums
from pipeline.errors import UsageError
from pipeline.package import Order, check_archive, licences
from pipeline.package.targets import PYTHONS, TARGETS, place_of

NAME = "lenet5-classic-host-bundle"


# --- Targets --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TARGETS)
def test_everything_that_a_target_can_run_is_possible(name: str) -> None:
    systems = list(PYTHONS) if TARGETS[name].board else [None]
    for system in systems:
        order = Order.of((), ["int8"], name, system)
        assert order.formats[0] == "c" and order.is_native
        assert bool(order.runtimes) == (len(order.formats) > 1)


REFUSED: dict[str, tuple[list[str], str]] = {
    "no wheel": (["--target", "pi-zero", "--runtime", "onnx"], "give --runtime c"),
    "32 bits": (["--target", "pi-32", "--runtime", "c,onnx"], "give --runtime c,tflite"),
    "Python": (
        ["--target", "pi-32", "--os", "trixie", "--runtime", "tflite"],
        "give --os bookworm or --runtime c",
    ),
    "target": (["--target", "pi4"], "did you mean 'pi-4'?"),
    "system": (["--target", "pi-4", "--os", "jessie"], "known: bookworm, trixie"),
    "host": (["--target", "host", "--os", "trixie"], "leave it out"),
    "system of nothing": (["--os", "trixie"], "belong to a --target"),
    "wheels of nothing": (
        ["--target", "pi-zero", "--wheelhouse"],
        "no runtime has a wheel for pi-zero",
    ),
    "C of nothing": (["--runtime", "c"], "give --target"),
    "runtime": (["--runtime", "tensorrt"], "unknown runtime 'tensorrt'"),
    "format": (["--target", "host", "--format", "rpm"], "known: tar.gz, deb"),
    "deb of nothing": (["--format", "deb"], "deb belong to a --target"),
    "wheels in a deb": (
        ["--target", "pi-4", "--format", "deb", "--wheelhouse"],
        "leave it out (apt installs python3-numpy), or give --format tar.gz",
    ),
    "a deb without C": (
        ["--target", "pi-4", "--format", "deb", "--runtime", "onnx"],
        "add c to --runtime",
    ),
    "a deb of what has no C": (
        ["--target", "pi-4", "--format", "deb", "--precision", "int16x8"],
        "add fp32 to --precision",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_possible_is_refused_with_the_nearest_that_is(name: str, cli: Cli) -> None:
    arguments, reason = REFUSED[name]
    done = cli("package", *arguments)
    assert done.returncode == 2
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1


def test_the_release_decides_the_runtimes() -> None:
    assert place_of("pi-4", "bookworm").runtimes == ("litert", "tflite-runtime", "onnxruntime")
    assert place_of("pi-4", "trixie").runtimes == ("litert", "onnxruntime")
    assert place_of("pi-32", "bookworm").runtimes == ("tflite-runtime",)
    assert place_of("pi-zero").runtimes == ()
    with pytest.raises(UsageError, match=r"Python 3\.13"):
        place_of("pi-32", "trixie").refuse(["tflite"])


# --- What is current ------------------------------------------------------------------------------


OF_ONNX = ("package", "--runtime", "onnx", "--precision", "fp32")


def test_a_bundle_is_made_again_when_the_runner_has_changed(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "unchanged" not in cli(*OF_ONNX).stdout
    assert "unchanged" in cli(*OF_ONNX).stdout
    changed = tmp_path / "deploy"
    shutil.copytree(Path(deploy.__file__).parent, changed)
    with (changed / "runner" / "bench.py").open("a") as file:
        file.write("# changed\n")
    monkeypatch.setattr(deploy, "__file__", str(changed / "__init__.py"))
    assert "unchanged" not in cli(*OF_ONNX).stdout


def test_a_bundle_is_made_again_with_another_waitress(
    cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "unchanged" not in cli(*OF_ONNX).stdout
    newer = replace(licences.packed_with_the_runner(), version="99")
    monkeypatch.setattr(pipeline.package, "packed_with_the_runner", lambda: newer)
    assert "unchanged" not in cli(*OF_ONNX).stdout


@pytest.mark.slow
def test_a_bundle_is_made_again_by_another_compiler(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ["package", "--target", "host", "--runtime", "c", "--precision", "int8", "--dry-run"]
    assert called(*order, runs=packed.parents[1]).stdout.endswith("  unchanged\n")
    monkeypatch.setattr(pipeline.package, "version_of", lambda *_: "gcc 99")
    assert called(*order, runs=packed.parents[1]).stdout.endswith("  replaced\n")


def test_a_signed_bundle_is_not_replaced_by_the_same_unsigned(
    cli: Cli, runs: Path, packed: Path
) -> None:
    key = str(packed.parents[2] / "private.pem")
    archive = runs / "small" / "lenet5-classic-bundle.tar.gz"
    assert cli(*OF_ONNX, "--sign", key).returncode == 0
    signed = archive.read_bytes()
    assert "unchanged" in cli(*OF_ONNX).stdout
    assert archive.read_bytes() == signed
    done = cli(*OF_ONNX[:-1], "int8")
    assert "lenet5-classic-bundle.tar.gz was signed, and is out of date" in done.stderr
    assert archive.read_bytes() != signed


# --- A bundle for this machine --------------------------------------------------------------------


@pytest.fixture
def bundle(packed: Path, tmp_path: Path) -> Path:
    """It, unpacked."""
    with tarfile.open(packed) as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / NAME


def install(bundle: Path, *options: str, prefix: Path) -> subprocess.CompletedProcess[str]:
    command = [str(bundle / "install.sh"), "--prefix", str(prefix), *options]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_bundle_says_what_it_is_for_and_holds_it(packed: Path) -> None:
    manifest = check_archive(packed)
    assert manifest["target"]["name"] == "host"
    assert list(manifest["models"]) == ["lenet5-classic-int8.so"]
    assert manifest["models"]["lenet5-classic-int8.so"]["verified_with"].startswith("c ")
    there = {"classify", "include/model.h", "install.sh", "NOTICES", "sbom.cdx.json"}
    assert there <= set(manifest["files"])
    assert not [name for name in manifest["files"] if name.startswith(("requirements", "c/"))]


def test_the_library_is_a_model_of_the_runner(bundle: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(bundle / "runner.pyz"), "selftest", "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (result,) = json.loads(done.stdout)
    assert result["runtime"].startswith("c ") and result["equal"] == 1.0
    readme = (bundle / "README.md").read_text()
    assert "sudo apt install python3-numpy" in readme  # with C alone it is the system's
    assert "openssl pkeyutl -verify" in readme


def test_an_installation_is_repeated_replaced_and_removed(bundle: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "some where"
    done = install(bundle, "--no-python", prefix=prefix)
    assert done.returncode == 0, done.stderr
    program = prefix / "current" / "bundle" / "classify"
    assert subprocess.run([program, "--selftest"], capture_output=True, check=False).returncode == 0
    assert "already installed" in install(bundle, "--no-python", prefix=prefix).stdout
    first = (prefix / "current").readlink()
    resealed(bundle, "README.md", b"another version\n")
    assert install(bundle, "--no-python", prefix=prefix).returncode == 0
    assert (prefix / "current").readlink() != first
    assert len(list(prefix.glob("version-*"))) == 1
    (prefix / "mine").write_text("kept")
    done = install(bundle, "--uninstall", prefix=prefix)
    assert done.returncode == 0 and "left alone" in done.stdout
    assert [path.name for path in prefix.iterdir()] == ["mine"]
    assert install(bundle, "--uninstall", prefix=prefix).returncode == 4


def test_a_damaged_installation_is_mended_by_the_same_bundle(bundle: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "place"
    for _ in range(3):
        assert install(bundle, "--no-python", prefix=prefix).returncode == 0
        damaged(prefix / "current" / "bundle")
        done = install(bundle, "--no-python", prefix=prefix)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("installed: ")
        intact = ["sha256sum", "--check", "--quiet", SUMS]
        assert subprocess.run(intact, cwd=prefix / "current/bundle", check=False).returncode == 0
        assert len(list(prefix.iterdir())) == 2  # the version, and the link to it
    # One that does not work either changes nothing.
    damaged(prefix / "current" / "bundle")
    before = (prefix / "current").readlink()
    wrong_here(bundle)
    assert install(bundle, "--no-python", prefix=prefix).returncode == 1
    assert (prefix / "current").readlink() == before


def test_what_a_power_cut_left_is_removed(bundle: Path, tmp_path: Path) -> None:
    prefix = tmp_path / "place"
    gone = subprocess.Popen(["true"])
    gone.wait()
    left = [prefix / f".new-{gone.pid}" / "files", prefix / f".current-{gone.pid}"]
    alive = prefix / f".new-{os.getpid()}"
    for options in ([], ["--uninstall"]):
        for folder in (*left, alive):
            folder.mkdir(parents=True)
        assert install(bundle, *options, prefix=prefix).returncode == 0
        assert not any(path.exists() for path in (*left, left[0].parent))
        alive.rmdir()
    assert list(prefix.iterdir()) == []


def resealed(bundle: Path, name: str, content: bytes) -> None:
    """Another content, with its sum."""
    (bundle / name).write_bytes(content)
    manifest = json.loads((bundle / MANIFEST).read_text())
    manifest["files"][name] = sha256(content)
    (bundle / MANIFEST).write_bytes(seal(manifest))
    (bundle / SUMS).write_bytes(sums(manifest["files"], seal(manifest)))


def damaged(bundle: Path) -> None:
    library = bundle / "lenet5-classic-int8.so"
    content = bytearray(library.read_bytes())
    content[len(content) // 2] ^= 1
    library.write_bytes(content)


def of_another_board(bundle: Path) -> None:
    resealed(bundle, "classify", b"\x7fELF, but of another machine")


def wrong_here(bundle: Path) -> None:
    resealed(bundle, "classify", b'#!/bin/sh\n[ "$1" = --version ]\n')


def without_x_bits(bundle: Path) -> None:
    """As on a disk that is mounted noexec."""
    (bundle / "classify").chmod(0o644)


BAD: dict[str, tuple[Any, list[str], int, str]] = {
    "damaged": (damaged, [], 3, "the bundle is damaged"),
    "another board": (of_another_board, [], 4, "this bundle is for a machine like this one"),
    "no program": (without_x_bits, [], 3, "no program may run in"),
    "wrong results": (wrong_here, [], 1, "the selftest failed here"),
    "no such option": (None, ["--root"], 2, "unknown option --root"),
    "no value": (None, ["--prefix"], 2, "lacks its value"),
    "no such runtime": (None, ["--runtime", "litert"], 2, "unknown runtime 'litert'"),
    "a runtime and none": (None, ["--no-python", "--runtime", "litert"], 2, "leave out one"),
    "a relative place": (None, ["--prefix", "here"], 2, "no absolute path"),
    "a place that is a file": (None, ["--prefix", "/dev/null"], 3, "cannot be made"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_goes_wrong_leaves_the_installation_as_it_was(
    name: str, bundle: Path, tmp_path: Path
) -> None:
    prefix = tmp_path / "place"
    assert install(bundle, "--no-python", prefix=prefix).returncode == 0
    before = sorted(path.relative_to(prefix) for path in prefix.rglob("*"))
    change, options, code, reason = BAD[name]
    if change is not None:
        change(bundle)
    done = install(bundle, *options, prefix=prefix)
    assert done.returncode == code
    assert reason in done.stderr and done.stderr.count("\n") == 1
    assert (prefix / "current" / "bundle" / "classify").is_file()
    assert sorted(path.relative_to(prefix) for path in prefix.rglob("*")) == before


def test_without_a_home_folder_a_place_is_asked_for(bundle: Path, tmp_path: Path) -> None:
    command = [str(bundle / "install.sh")]
    known = {"env": {"PATH": os.environ["PATH"]}, "capture_output": True, "text": True}
    done: Any = subprocess.run(command, **known, check=False)  # type: ignore[call-overload]
    assert done.returncode == 2
    assert "HOME is not set" in done.stderr and done.stderr.count("\n") == 1
    command += ["--prefix", str(tmp_path / "place")]
    done = subprocess.run(command, **known, check=False)  # type: ignore[call-overload]
    assert done.returncode == 0, done.stderr


def test_an_interruption_has_its_exit_code(bundle: Path, tmp_path: Path) -> None:
    """During the selftest, say: what was begun is gone."""
    ends = 'case $PWD in */.new-*) rest=${PWD#*/.new-}; kill "${rest%%/*}" ;; esac'
    resealed(bundle, "classify", f"#!/bin/sh\n{ends}\n".encode())
    done = install(bundle, prefix=tmp_path / "place")
    assert (done.returncode, done.stderr) == (5, "interrupted\n")
    assert list((tmp_path / "place").iterdir()) == []


# --- With a runtime that pip installs -------------------------------------------------------------


def with_runtime(bundle: Path, name: str, content: str) -> None:
    """Its runtime is a wheel in it with one file."""
    (bundle / "wheels").mkdir()
    wheel = bundle / "wheels" / "stub-1-py3-none-any.whl"
    about = "stub-1.dist-info"
    with zipfile.ZipFile(wheel, "w") as files:
        files.writestr(name, content)
        files.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: stub\nVersion: 1\n")
        tag = "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        files.writestr(f"{about}/WHEEL", tag)
        files.writestr(f"{about}/RECORD", f"{name},,\n")
    requirement = f"stub==1 --hash=sha256:{sha256(wheel.read_bytes())}\n"
    (bundle / "requirements-litert.txt").write_text(requirement)
    script = (bundle / "install.sh").read_text()
    changed = script.replace("requirements=''", "requirements='litert'", 1)
    resealed(bundle, "install.sh", changed.encode())


def test_a_runtime_that_does_not_work_is_not_installed(bundle: Path, tmp_path: Path) -> None:
    """Though C, which the runner takes first, does."""
    with_runtime(bundle, "stub.pth", sysconfig.get_path("purelib"))
    done = install(bundle, prefix=tmp_path / "place")
    assert done.returncode == 1
    assert "selftest failed here (error: the bundle has no .tflite file for litert" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list((tmp_path / "place").iterdir()) == []
    assert install(bundle, "--no-python", prefix=tmp_path / "place").returncode == 0


@pytest.mark.slow
def test_without_numpy_its_package_is_named(bundle: Path, tmp_path: Path) -> None:
    with_runtime(bundle, "numpy.py", "raise ImportError('none here')")
    done = install(bundle, prefix=tmp_path / "place")
    assert (done.returncode, done.stderr) == (
        4,
        "error: there is no NumPy; run 'sudo apt install python3-numpy', or give --no-python\n",
    )


@pytest.mark.parametrize(
    ("wheels", "mend"),
    [(False, "choose another --runtime"), (True, "make the bundle without --wheelhouse")],
)
def test_a_runtime_without_wheels_for_this_python_is_said(
    wheels: bool, mend: str, bundle: Path, tmp_path: Path
) -> None:
    script = (bundle / "install.sh").read_text()
    changed = script.replace("requirements=''", "requirements='tflite-runtime'", 1)
    changed = re.sub("^needed='.*?'", "needed='3.1'", changed, flags=re.MULTILINE)
    resealed(bundle, "install.sh", changed.encode())
    if wheels:
        (bundle / "wheels").mkdir()
    done = install(bundle, prefix=tmp_path / "place")
    assert done.returncode == 4
    assert f"; {mend}, or give --no-python\n" in done.stderr


# --- With a key -----------------------------------------------------------------------------------


def resigned(bundle: Path) -> None:
    """By another key."""
    signature = Ed25519PrivateKey.generate().sign((bundle / "SHA256SUMS").read_bytes())
    (bundle / "SHA256SUMS.sig").write_bytes(signature)


def changed_with_its_sum(bundle: Path) -> None:
    resealed(bundle, "README.md", b"another version\n")


WITH_KEY: dict[str, tuple[Any, int, str]] = {
    "signed": (None, 0, ""),
    "another key": (resigned, 3, "no signature by the owner of"),
    "not signed": (
        lambda bundle: (bundle / "SHA256SUMS.sig").unlink(),
        3,
        "not signed (no SHA256SUMS.sig)",
    ),
    "changed with its sum": (changed_with_its_sum, 3, "no signature by the owner of"),
    "changed": (damaged, 3, "the bundle is damaged"),
}


@pytest.mark.skipif(shutil.which("openssl") is None, reason="there is no openssl")
@pytest.mark.parametrize("name", WITH_KEY)
def test_with_a_key_only_what_its_owner_signed_is_installed(
    name: str, packed: Path, bundle: Path, tmp_path: Path
) -> None:
    change, code, reason = WITH_KEY[name]
    if change is not None:
        change(bundle)
    key = str(packed.parents[2] / "public.pem")
    done = install(bundle, "--no-python", "--key", key, prefix=tmp_path / "place")
    assert done.returncode == code, done.stderr
    assert reason in done.stderr and done.stderr.count("\n") == bool(code)
    assert (tmp_path / "place" / "current").exists() == (code == 0)


def test_what_was_added_to_a_checked_bundle_is_not_run(bundle: Path, tmp_path: Path) -> None:
    """The sums do not know of it, and Python would take modules from where it is started."""
    script = (bundle / "install.sh").read_text()
    changed = script.replace("requirements=''", "requirements='litert'", 1)
    assert changed != script
    resealed(bundle, "install.sh", changed.encode())
    (bundle / "requirements-litert.txt").write_text("==\n")
    for name in ("venv.py", "pip.py"):
        (bundle / name).write_text(f"open({str(tmp_path / 'was run')!r}, 'w')\n")
    done = install(bundle, prefix=tmp_path / "place")
    assert done.returncode == 4 and "pip installs no litert" in done.stderr
    assert not (tmp_path / "was run").exists()


def test_a_key_needs_openssl_and_a_file(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for name in ("dirname", "sh"):
        (tmp_path / "bin" / name).symlink_to(shutil.which(name) or "")
    done = subprocess.run(
        [str(bundle / "install.sh"), "--key", "k.pem", "--prefix", str(tmp_path / "place")],
        env={"PATH": str(tmp_path / "bin"), "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 4
    assert done.stderr.startswith("error: there is no openssl") and done.stderr.count("\n") == 1
    done = install(bundle, "--key", str(tmp_path / "k.pem"), prefix=tmp_path / "place")
    assert done.returncode == 4 and "k.pem: cannot be read" in done.stderr


# --- The unit -------------------------------------------------------------------------------------

SYSTEMCTL = """#!/bin/sh
echo "$@" >> "$HOME/asked"
[ "$FAILS" != "$2" ]
"""


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A home whose systemd says yes to everything, and writes down what it was asked."""
    folder = tmp_path / "home"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "systemctl").write_text(SYSTEMCTL)
    (folder / "bin" / "systemctl").chmod(0o755)
    return folder


def installed_by(
    home: Path, bundle: Path, *options: str, fails: str = ""
) -> subprocess.CompletedProcess[str]:
    path = f"{home / 'bin'}{os.pathsep}{os.environ['PATH']}"
    environment = {"HOME": str(home), "PATH": path, "FAILS": fails}
    command = [str(bundle / "install.sh"), *options]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_the_unit_is_installed_for_the_user_and_removed_with_the_rest(
    home: Path, bundle: Path
) -> None:
    options = ["--no-python", "--prefix", str(home / "50 % there")]
    done = installed_by(home, bundle, *options, "--service")
    assert done.returncode == 0, done.stderr
    unit = home / ".config/systemd/user/pi-lenet5-classic.service"
    assert f"WorkingDirectory={home}/50 %% there/current/bundle\n" in unit.read_text()
    asked = (home / "asked").read_text()
    assert "enable pi-lenet5-classic.service" in asked and "restart pi-lenet5-classic" in asked
    if shutil.which("systemd-analyze"):
        environment = {"HOME": str(home), "XDG_RUNTIME_DIR": str(home), "PATH": os.environ["PATH"]}
        command = ["systemd-analyze", "verify", "--user", str(unit)]
        verified = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False
        )
        assert verified.returncode == 0, verified.stderr
    # What it starts, in the folder that it names, succeeds, and does not where a file is damaged.
    lines = dict(line.split("=", 1) for line in unit.read_text().splitlines() if "=" in line)
    folder = Path(lines["WorkingDirectory"].replace("%%", "%"))
    for name in ("ExecStartPre", "ExecStart"):
        done = subprocess.run(lines[name].split(), cwd=folder, capture_output=True, check=False)
        assert done.returncode == 0
    damaged(folder)
    done = subprocess.run(lines["ExecStartPre"].split(), cwd=folder, check=False)
    assert done.returncode == 1
    # An installation elsewhere leaves the unit alone.
    other = ["--no-python", "--prefix", str(home / "other")]
    assert installed_by(home, bundle, *other).returncode == 0
    assert installed_by(home, bundle, *other, "--uninstall").returncode == 0
    assert unit.exists()
    done = installed_by(home, bundle, *options, "--uninstall")
    assert done.returncode == 0, done.stderr
    assert not unit.exists() and not (home / "50 % there").exists()
    assert "disable --now pi-lenet5-classic.service" in (home / "asked").read_text()


def test_an_update_takes_the_service_along(home: Path, bundle: Path) -> None:
    options = ["--no-python", "--prefix", str(home / "place")]
    assert installed_by(home, bundle, *options, "--service").returncode == 0
    (home / "asked").unlink()
    unit = home / ".config/systemd/user/pi-lenet5-classic.service"
    unit.write_text(f"[Service]\nWorkingDirectory={home}/place/current/bundle\n# the old one\n")
    resealed(bundle, "README.md", b"another version\n")
    done = installed_by(home, bundle, *options)
    assert done.returncode == 0, done.stderr
    assert "the old one" not in unit.read_text()
    assert "restart pi-lenet5-classic.service" in (home / "asked").read_text()
    # One that its owner has disabled is not started.
    (home / "asked").unlink()
    done = installed_by(home, bundle, *options, fails="is-enabled")
    assert done.returncode == 0, done.stderr
    assert "restart" not in (home / "asked").read_text()


def test_the_service_is_stopped_before_its_files_are_removed(home: Path, bundle: Path) -> None:
    options = ["--no-python", "--prefix", str(home / "place")]
    assert installed_by(home, bundle, *options, "--service").returncode == 0
    (home / "bin" / "systemctl").write_text(
        f"#!/bin/sh\nls {home}/place/current/bundle/classify >>{home}/seen 2>&1\n"
    )
    assert installed_by(home, bundle, *options, "--uninstall").returncode == 0
    assert "No such file" not in (home / "seen").read_text()


def test_a_folder_of_units_that_cannot_be_written_is_said_first(home: Path, bundle: Path) -> None:
    (home / ".config").write_text("a file")
    done = installed_by(home, bundle, "--prefix", str(home / "place"), "--service")
    assert done.returncode == 3
    assert "systemd/user: cannot be written" in done.stderr and done.stderr.count("\n") == 1
    assert not (home / "place").exists()


NO_SERVICE = {
    "show-environment": (4, "leave out --service", False),
    "restart": (1, "did not start", True),
}


@pytest.mark.parametrize("fails", NO_SERVICE)
def test_a_unit_that_cannot_be_started_is_said(fails: str, home: Path, bundle: Path) -> None:
    code, reason, installed = NO_SERVICE[fails]
    options = ["--no-python", "--prefix", str(home / "place"), "--service"]
    done = installed_by(home, bundle, *options, fails=fails)
    assert done.returncode == code
    assert reason in done.stderr and done.stderr.count("\n") == 1
    assert (home / "place" / "current").exists() == installed
