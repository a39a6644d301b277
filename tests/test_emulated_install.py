"""What install.sh says on emulated boards where it cannot succeed, and what it leaves; and a newer
release than this machine's, on which it does.
"""

from __future__ import annotations

import functools
import importlib.util
import json
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import pipeline
from emulation import board_root, on_board
from machine import AS_PI, boot

BOARD = "pi-4"
OLD = ("--runtime", "c", "--precision", "int8")
SERVED = ("--runtime", "c,tflite", "--precision", "int8", "--wheelhouse")
NEW = ("--os", "trixie", "--runtime", "c,onnx", "--wheelhouse")  # for Python 3.13
Bundle = Callable[[tuple[str, ...], Path], str]
pytestmark = [
    pytest.mark.emulated,
    pytest.mark.timeout(1800),  # the first test of a board packs and installs
    pytest.mark.skipif(
        importlib.util.find_spec("ziglang") is None, reason="no ziglang: run 'make emulators'"
    ),
]


@pytest.fixture(scope="session")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Unpacks an order below /tmp of a root folder, and says where; each is packed once."""
    place = tmp_path_factory.mktemp("install")

    @functools.cache
    def packed(order: tuple[str, ...]) -> Path:
        runs = place / str(hash(order)) / "runs"
        shutil.copytree(trained, runs)
        options = ["--run", "small", "--target", BOARD, *order, "--json"]
        done = pipeline("package", *options, runs=runs)
        if done.returncode == 4 and "wheels" in done.stderr:
            pytest.skip(done.stderr.strip())
        assert done.returncode == 0, done.stderr
        return Path(json.loads(done.stdout)["file"])

    def unpacked(order: tuple[str, ...], root: Path) -> str:
        folder = root / "tmp" / str(len(order))
        with tarfile.open(packed(order)) as files:
            files.extractall(folder, filter="data")
        (name,) = folder.iterdir()
        return f"/tmp/{folder.name}/{name.name}"

    return unpacked


# The listing before and after; its exit code is that of the new one's installation.
ATTEMPT = """
ls -AR /opt/x
echo ----
"$1/install.sh" --prefix /opt/x >/tmp/said && code=0 || code=$?
ls -AR /opt/x
/opt/x/current/bundle/classify --selftest >/dev/null || exit 99
exit $code
"""
READ_ONLY = 'mount --bind "$1/opt" "$1/opt"; mount -o remount,bind,ro "$1/opt"'
FULL = 'mkdir "$1/mnt"; mount -t tmpfs -o size={} tmpfs "$1/mnt"; cp -a "$1/opt/x" "$1/mnt"\n'
FULL += 'mount --bind "$1/mnt" "$1/opt"'


def attempt(root: Path, bundle: Bundle, mounts: str = "") -> subprocess.CompletedProcess[str]:
    """Installs the new bundle where the old one is: nothing may have changed."""
    old, new = bundle(OLD, root), bundle(NEW, root)
    done = on_board(BOARD, root, f"{old}/install.sh", "--prefix", "/opt/x")
    assert done.returncode == 0, done.stderr
    done = on_board(BOARD, root, "/bin/sh", "-c", ATTEMPT, "sh", new, mounts=mounts)
    before, _, after = done.stdout.partition("----\n")
    assert before == after and "current" in before
    return done


def test_a_read_only_folder_is_said(bundle: Bundle, tmp_path: Path) -> None:
    done = attempt(board_root(BOARD, tmp_path / "root", "trixie"), bundle, READ_ONLY)
    assert (done.returncode, done.stderr) == (
        3,
        "error: /opt/x: its disk is read-only; see to the memory card, or give another --prefix\n",
    )


# MB beside the bundle: it is full while that is copied, while the environment is made, while pip
# installs into that.
@pytest.mark.parametrize("room", [-20, 5, 25], ids=["copy", "environment", "wheels"])
def test_a_full_disk_is_said(room: int, bundle: Bundle, tmp_path: Path) -> None:
    root = board_root(BOARD, tmp_path / "root", "trixie")
    files = Path(f"{root}{bundle(NEW, root)}").rglob("*")
    size = sum(path.stat().st_size for path in files) + room * 1_000_000
    done = attempt(root, bundle, FULL.format(size))
    assert (done.returncode, done.stderr) == (
        3,
        "error: /opt/x: its disk is full; make room there, or give another --prefix\n",
    )


@pytest.mark.parametrize(
    ("release", "error"),
    [
        (
            "",
            "error: the wheels of onnxruntime are for Python 3.13, and this is 3.11; "
            "make the bundle with --os bookworm, or give --no-python\n",
        ),
        (
            "bullseye",
            "error: the runner needs Python 3.11 or newer, and this is 3.9; "
            "use Raspberry Pi OS bookworm or newer, or give --no-python\n",
        ),
    ],
    ids=["wheels for another", "none that the runner takes"],
)
def test_another_python_is_said(release: str, error: str, bundle: Bundle, tmp_path: Path) -> None:
    done = attempt(board_root(BOARD, tmp_path / "root", release), bundle)
    assert (done.returncode, done.stderr) == (4, error)


def test_trixie_runs_onnx_runtime_from_the_wheels_of_the_bundle(
    bundle: Bundle, tmp_path: Path
) -> None:
    root = board_root(BOARD, tmp_path, "trixie")
    install = f"{bundle(NEW, root)}/install.sh"
    done = on_board(BOARD, root, install, "--prefix", "/opt/x", PIP_NO_COMPILE="1")
    assert done.returncode == 0, done.stderr

    def answer(*arguments: str) -> Any:
        command = ["/opt/x/current/venv/bin/python", "/opt/x/current/bundle/runner.pyz"]
        done = on_board(BOARD, root, *command, *arguments, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    results = answer("selftest", "--runtime", "onnxruntime")
    assert [result["passed"] for result in results] == [True, True]
    found = {finding["what"]: finding for finding in answer("doctor")}
    assert found["Python"]["found"].startswith("3.13.")
    for runtime in ("c", "onnxruntime"):
        for precision in ("int8", "fp32"):
            assert found[f"runtime {runtime} {precision}"]["state"] == "fine"
    card = answer("bench", "--count", "5", "--threads", "1", "--precision", "int8")
    metrics = [m for result in card["model-index"][0]["results"] for m in result["metrics"]]
    assert {m["args"]["runtime"].split()[0] for m in metrics} == {"c", "onnxruntime"}
    assert min(m["value"] for m in metrics if m["type"] == "p50_us") > 0


def test_a_whole_machine_of_256_mb_boots_installs_and_predicts(
    bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    files = tmp_path / "files"
    folder = bundle(OLD, files).replace("/tmp/", "/files/tmp/")
    (files / "picture.pgm").write_bytes(b"P5 28 28 255\n" + bytes(28 * 28))
    runner = ["/usr/bin/python3", "/opt/x/current/bundle/runner.pyz"]
    commands = [
        [f"{folder}/install.sh", "--prefix", "/opt/x"],
        [*runner, "selftest", "--json"],
        [*runner, "predict", "/files/picture.pgm", "--json"],
        ["/opt/x/current/bundle/classify", "--json", "/files/picture.pgm"],
        ["/usr/bin/cat", "/proc/meminfo"],
    ]
    installed, selftest, predicted, classified, memory = boot(
        BOARD, "cortex-a72", files, commands, tmp_path / "work"
    )
    assert installed[0] == 0 and "installed: /opt/x/current" in installed[1], installed[2]
    assert selftest[0] == 0, selftest[2]
    assert [result["passed"] for result in json.loads(selftest[1])] == [True]
    (answer,) = json.loads(predicted[1])["answers"]
    (of_program,) = json.loads(classified[1])["answers"]
    assert of_program["top"][0][0] == answer["top"][0][0]
    assert int(memory[1].split()[1]) < 256 * 1024  # MemTotal, in KiB


def test_systemd_serves_restarts_and_holds_the_service(bundle: Bundle, tmp_path: Path) -> None:
    """Of a user without any rights, in a machine that systemd runs."""
    (tmp_path / "work").mkdir()
    files = tmp_path / "files"
    folder = bundle(SERVED, files).replace("/tmp/", "/files/tmp/")
    (files / "picture.pgm").write_bytes(b"P5 28 28 255\n" + bytes(28 * 28))
    shutil.copy(Path(__file__).with_name("machine_service.py"), files)
    service = "pi-lenet5-classic.service"
    python = "/usr/bin/python3"
    install = ["/usr/bin/env", "PIP_NO_COMPILE=1", f"{folder}/install.sh"]  # for speed
    commands = [
        [*AS_PI, *install, "--runtime", "tflite-runtime", "--service"],
        [*AS_PI, python, "/files/machine_service.py", service, "/files/picture.pgm"],
        [*AS_PI, f"{folder}/install.sh", "--uninstall"],
        [*AS_PI, "/usr/bin/systemctl", "--user", "cat", service],
        ["/usr/bin/journalctl", "--no-pager", "-n", "60"],
    ]
    installed, held, removed, gone, journal = boot(
        BOARD, "cortex-a72", files, commands, tmp_path / "work", megabytes=1024, systemd=True
    )
    assert installed[0] == 0 and f"service: {service}" in installed[1], (installed, journal[1])
    assert held[0] == 0, (held[2], journal[1])
    found = json.loads(held[1])
    assert found["state"] == "active"
    user = found["sandbox"].pop("Uid").split()
    assert user == ["1000"] * 4
    assert found["sandbox"].pop("/").split(",")[0] == "ro"
    assert found["sandbox"] == {"NoNewPrivs": "1", "Seccomp": "2", "CapEff": f"{0:016x}"}
    restarted, count, answer = found["after SIGKILL"]
    assert (restarted, count) == (True, "1")
    restarted, seconds, again = found["after SIGSTOP"]
    assert restarted and seconds > 5  # the watchdog waited
    assert answer["label"] == again["label"] == found["answer"]["label"]
    assert found["stopped"] == ["inactive", "success"]
    assert removed[0] == 0 and gone[0] != 0, removed
