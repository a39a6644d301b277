"""What install.sh says on emulated boards where it cannot succeed, and what it leaves; and a newer
release than this machine's, on which it does.
"""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
from emulation import NEEDS_ZIG, Bundle, board_root, on_board, orders

BOARD = "pi-4"
OLD = ("--runtime", "c", "--precision", "int8")
NEW = ("--os", "trixie", "--runtime", "c,onnx", "--wheelhouse")  # for Python 3.13
pytestmark = [
    pytest.mark.emulated,
    pytest.mark.timeout(1800),  # the first test of a board packs and installs
    NEEDS_ZIG,
]


@pytest.fixture(scope="session")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return orders(trained, BOARD, tmp_path_factory.mktemp("install"))


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
