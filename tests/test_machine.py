"""Whole emulated machines, which boot, install a bundle and use it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from emulation import NEEDS_ZIG, Bundle, orders
from machine import AS_PI, boot

BOARD = "pi-4"
PLAIN = ("--runtime", "c", "--precision", "int8")
SERVED = ("--runtime", "c,tflite", "--precision", "int8", "--wheelhouse")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1800),  # of a slow machine
    NEEDS_ZIG,
]


@pytest.fixture(scope="session")
def bundle(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return orders(trained, BOARD, tmp_path_factory.mktemp("machine"))


def test_a_whole_machine_of_256_mb_boots_installs_and_predicts(
    bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "work").mkdir()
    files = tmp_path / "files"
    folder = bundle(PLAIN, files).replace("/tmp/", "/files/tmp/")
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
