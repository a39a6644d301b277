"""Deployment to real sshd servers on the loopback address, with a key made for the test."""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from conftest import called

from pipeline.deployment import Deployed, Device, Installation, report_name
from pipeline.deployment import deploy as run_deployment
from pipeline.deployment.detect import target_of
from pipeline.deployment.installation import latencies, reported
from pipeline.deployment.show import show_device
from pipeline.errors import BadInput, Missing, UsageError, VerificationFailed
from pipeline.package import Order, package_run
from pipeline.run_folder import RunFolder
from pipeline.verify.compiler import compiler

SSHD = shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")
STEM = "lenet5-classic-host-bundle"
needs_sshd = [
    pytest.mark.slow,
    pytest.mark.skipif(SSHD is None, reason="there is no sshd"),
    pytest.mark.skipif(compiler() is None, reason="there is no C compiler"),
]


@dataclass
class Board:
    """An sshd that stands for a device: its own home folder, and ssh's configuration for it."""

    home: Path
    port: int
    server: subprocess.Popen[bytes]

    @property
    def current(self) -> Path:
        return self.home / "share" / "lenet5-classic" / "current"

    def works(self) -> bool:
        command = [str(self.current / "bundle" / "classify"), "--selftest"]
        return subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A key of the servers, one that they let in, and one that they do not."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("host", "mine", "other"):
        command = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / name)]
        subprocess.run(command, check=True)
    return folder


def started(keys: Path, home: Path, more: str = "", **environment: str) -> Board:
    """An sshd with this home folder. Skips the test where it does not start."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    home.mkdir(parents=True, exist_ok=True)
    known = {"HOME": str(home), "XDG_DATA_HOME": str(home / "share")} | environment
    config = home.with_suffix(".sshd")
    config.write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {keys}/host\nPidFile none\n"
        f"AuthorizedKeysFile {keys}/mine.pub\nStrictModes no\nUsePAM no\n"
        f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nPermitRootLogin yes\n"
        + f"SetEnv {' '.join(f'{name}={value}' for name, value in known.items())}\n"
        + (more or f"Subsystem sftp internal-sftp -d {home}\n")
    )
    if os.geteuid() == 0:
        Path("/run/sshd").mkdir(exist_ok=True)  # where it gives its privileges up
    log = home.with_suffix(".log")
    with log.open("wb") as output:
        server = subprocess.Popen([str(SSHD), "-D", "-e", "-f", str(config)], stderr=output)
    for _ in range(100):
        if server.poll() is not None:
            pytest.skip(f"sshd does not start here: {log.read_text().strip()}")
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return Board(home, port, server)
        time.sleep(0.05)
    raise AssertionError("sshd does not listen")


@pytest.fixture
def board(keys: Path, tmp_path: Path) -> Iterator[Callable[..., Board]]:
    """Starts servers, and stops them."""
    boards: list[Board] = []

    def start(name: str = "board", more: str = "", **environment: str) -> Board:
        boards.append(started(keys, tmp_path / name, more, **environment))
        return boards[-1]

    yield start
    for one in boards:
        one.server.kill()
        one.server.wait()


def ssh_config(keys: Path, boards: dict[str, Board], folder: Path, **changes: str) -> Path:
    """ssh's configuration for these boards by name."""
    host_key = " ".join((keys / "host.pub").read_text().split()[:2])
    lines = [f"[127.0.0.1]:{board.port} {host_key}\n" for board in boards.values()]
    (folder / "known_hosts").write_text("".join(lines))
    known = {
        "HostName": "127.0.0.1",
        "IdentityFile": f"{keys}/mine",
        "IdentitiesOnly": "yes",
        "UserKnownHostsFile": f"{folder}/known_hosts",
        "StrictHostKeyChecking": "yes",
    } | changes
    text = ""
    for name, one in boards.items():
        text += f"Host {name}\n  Port {one.port}\n"
        text += "".join(f"  {key} {value}\n" for key, value in known.items())
    (folder / "ssh_config").write_text(text)
    return folder / "ssh_config"


@pytest.fixture(scope="module")
def packed(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A runs folder in which the bundle is made already."""
    runs = tmp_path_factory.mktemp("deploy") / "runs"
    shutil.copytree(trained, runs)
    done = called("package", "--run", "small", *OF_C, runs=runs)
    assert done.returncode == 0, done.stderr
    return runs


OF_C = ["--target", "host", "--runtime", "c", "--precision", "int8"]


def deploy(runs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return called("deploy", "--run", "small", *OF_C, "--count", "20", *arguments, runs=runs)


class TestOneDevice:
    pytestmark = needs_sshd

    def test_it_is_installed_tested_and_measured(
        self, board: Callable[..., Board], keys: Path, packed: Path, tmp_path: Path
    ) -> None:
        one = board()
        config = ssh_config(keys, {"kitchen": one}, tmp_path)
        done = deploy(packed, "kitchen", "--ssh-config", str(config), "--json")
        assert done.returncode == 0, done.stderr
        assert one.works()
        record = json.loads(done.stdout)
        report = json.loads(Path(record["report"]).read_text())
        assert Path(record["report"]).name == "device-kitchen.json"
        assert (report["host"], report["target"], report["error"]) == ("kitchen", "host", None)
        assert report["selftest"]["passed"] is True
        assert report["bench"]["inferences"] == 20
        assert latencies(report["bench"])[0]["p50_us"] > 0
        assert not list(one.home.glob(".cache/pi-pipeline/*"))
        again = deploy(packed, "kitchen", "--ssh-config", str(config))
        assert again.returncode == 0, again.stderr
        assert "kitchen: one image at a time" in again.stdout

    @pytest.mark.skipif(platform.machine() != "x86_64", reason="a Pi is not told as 'host'")
    def test_it_is_asked_what_it_is(
        self, board: Callable[..., Board], keys: Path, packed: Path, tmp_path: Path
    ) -> None:
        config = ssh_config(keys, {"kitchen": board()}, tmp_path)
        options = ["--runtime", "c", "--precision", "int8", "--count", "20"]
        done = called(
            *["deploy", "kitchen", "--run", "small", *options, "--ssh-config", str(config)],
            runs=packed,
        )
        assert done.returncode == 0, done.stderr
        assert "kitchen is a host" in done.stderr

    def test_a_prefix_may_have_any_name(
        self, board: Callable[..., Board], keys: Path, packed: Path, tmp_path: Path
    ) -> None:
        one = board()
        config = ssh_config(keys, {"kitchen": one}, tmp_path)
        prefix = tmp_path / "it's a $HOME; rm -rf x"
        done = deploy(packed, "kitchen", "--ssh-config", str(config), "--prefix", str(prefix))
        assert done.returncode == 0, done.stderr
        assert (prefix / "current" / "bundle" / "classify").is_file()

    def test_a_connection_that_is_cut_leaves_what_was_installed(
        self, board: Callable[..., Board], keys: Path, packed: Path, tmp_path: Path
    ) -> None:
        one = board()
        config = ssh_config(keys, {"kitchen": one}, tmp_path)
        assert deploy(packed, "kitchen", "--ssh-config", str(config)).returncode == 0
        before = one.current.readlink()
        sftp = tmp_path / "sftp"
        server = "/usr/lib/openssh/sftp-server"
        sftp.write_text(
            f"#!/bin/sh\ndd bs=1 count=60000 status=none | {server} -d {one.home}\nkill -9 $PPID\n"
        )
        sftp.chmod(0o755)
        cut = board(one.home.name, more=f"Subsystem sftp {sftp}\n")
        config = ssh_config(keys, {"kitchen": cut}, tmp_path)
        done = deploy(packed, "kitchen", "--ssh-config", str(config))
        assert done.returncode == 4
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "the connection was lost" in error and "give the command again" in error
        assert one.works() and one.current.readlink() == before

    def test_wrong_results_there_install_nothing(
        self, board: Callable[..., Board], keys: Path, packed: Path, tmp_path: Path
    ) -> None:
        one = board(PATH=f"{broken_processor(tmp_path)}:{os.environ['PATH']}")
        config = ssh_config(keys, {"kitchen": one}, tmp_path)
        done = deploy(packed, "kitchen", "--ssh-config", str(config))
        assert done.returncode == 1
        assert "error: kitchen: the selftest failed here; nothing was installed" in done.stderr
        assert not one.current.exists()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root mounts a small disk")
    def test_a_full_disk_is_said(
        self, board: Callable[..., Board], keys: Path, packed: Path, tmp_path: Path
    ) -> None:
        home = tmp_path / "board"
        home.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(home)]
        if subprocess.run(mount, capture_output=True, check=False).returncode != 0:
            pytest.skip("nothing may be mounted here")
        try:
            config = ssh_config(keys, {"kitchen": board()}, tmp_path)
            done = deploy(packed, "kitchen", "--ssh-config", str(config))
        finally:
            subprocess.run(["umount", "--lazy", str(home)], check=True)
        assert done.returncode == 3
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert "full" in error or "no space left" in error

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"UserKnownHostsFile": "/dev/null"}, "run 'ssh kitchen' once and compare the key"),
            ({"IdentityFile": "other"}, "run 'ssh-copy-id kitchen'"),
            ({"Port": "1"}, "enable ssh there"),
            ({"HostName": "no-such-device.invalid"}, "there is no device of that name"),
        ],
        ids=["unknown host key", "no key", "no ssh there", "no such name"],
    )
    def test_what_cannot_be_reached_is_said_with_what_mends_it(
        self,
        changes: dict[str, str],
        words: str,
        board: Callable[..., Board],
        keys: Path,
        packed: Path,
        tmp_path: Path,
    ) -> None:
        one = board()
        if "IdentityFile" in changes:
            changes = {"IdentityFile": f"{keys}/other"}
        config = ssh_config(keys, {"kitchen": one}, tmp_path, **changes)
        if "Port" in changes:
            config.write_text(config.read_text().replace(f"Port {one.port}", "Port 1"))
        done = deploy(packed, "kitchen", "--ssh-config", str(config))
        assert done.returncode == 4
        (error,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
        assert words in error and "kitchen: " in error
        assert list(one.home.iterdir()) == []


def broken_processor(folder: Path) -> Path:
    """A folder of programs with a tar after which classify computes something else, and says so."""
    programs = folder / "programs"
    programs.mkdir()
    (programs / "tar").write_text(
        f"""#!/bin/sh
{shutil.which("tar")} "$@" || exit
printf '#!/bin/sh\\n[ "$1" = --version ]\\n' >{STEM}/classify
cd {STEM} && sha256sum $(cut -d' ' -f3 SHA256SUMS) >sums && mv sums SHA256SUMS
"""
    )
    (programs / "tar").chmod(0o755)
    return programs


def test_a_dry_run_prints_the_commands_and_does_nothing(trained: Path) -> None:
    record = (trained / "small" / "run.json").read_bytes()
    done = deploy(trained, "pi@nowhere.invalid", "--dry-run")
    assert done.returncode == 0, done.stderr
    commands = [shlex.split(line) for line in done.stdout.splitlines()]
    assert [command[0] for command in commands] == ["ssh", "scp", *["ssh"] * 4]
    assert all("pi@nowhere.invalid" in " ".join(command) for command in commands)
    assert (trained / "small" / "run.json").read_bytes() == record


@pytest.mark.slow
def test_what_was_packed_for_a_device_is_taken_as_it_is(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIPELINE_RUNS_DIR", str(packed))
    run = RunFolder.open("small")
    order = Order.as_packed(run, "host", None)
    assert order is not None and (order.formats, order.precisions) == (("c",), ("int8",))
    assert not package_run(run, order)  # it is current
    assert Order.as_packed(run, "pi-4", None) is None


def test_a_dry_run_prints_json(trained: Path) -> None:
    done = deploy(trained, "pi@nowhere.invalid", "--dry-run", "--json")
    commands = json.loads(done.stdout)["commands"]
    assert [command[0] for command in commands] == ["ssh", "scp", *["ssh"] * 4]


def test_what_does_not_answer_is_asked_once(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "asked"
    (tmp_path / "ssh").write_text(
        f"#!/bin/sh\necho x >>{shlex.quote(str(asked))}\necho timed out >&2\nexit 255\n"
    )
    (tmp_path / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    done = deploy(packed, "kitchen")
    assert done.returncode == 4 and "it does not answer" in done.stderr
    assert asked.read_text() == "x\n"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a device or an --inventory"),
        (["-oProxyCommand=touch x"], "no such option"),
        (["--", "-oProxyCommand=touch x"], "is no device"),
        (["pi@kitchen; reboot"], "is no device"),
        (["kitchen", "--prefix", "here"], "begins with /"),
        (["kitchen", "--count", "0"], "give 1 or more"),
        (["kitchen", "--runtime", "onnx"], "add c to --runtime"),
        (["kitchen", "--runtime", "tflite", "--dry-run"], "add c to --runtime"),
    ],
)
def test_what_makes_no_sense_is_refused(trained: Path, arguments: list[str], words: str) -> None:
    done = deploy(trained, *arguments)
    assert done.returncode == 2
    assert words in done.stderr


def test_a_dry_run_asks_no_device(trained: Path) -> None:
    done = called("deploy", "kitchen", "--run", "small", "--dry-run", runs=trained)
    assert done.returncode == 2 and "give --target" in done.stderr


@pytest.mark.parametrize(
    ("machine", "bits", "board", "target"),
    [
        ("armv6l", "32", "Raspberry Pi Zero W Rev 1.1", "pi-zero"),
        ("armv7l", "32", "Raspberry Pi 3 Model B Rev 1.2", "pi-32"),
        ("aarch64", "32", "Raspberry Pi 4 Model B Rev 1.4", "pi-32"),
        ("aarch64", "64", "Raspberry Pi Zero 2 W Rev 1.0", "pi-zero-2"),
        ("aarch64", "64", "Raspberry Pi 3 Model B Plus Rev 1.3", "pi-3"),
        ("aarch64", "64", "Raspberry Pi 400 Rev 1.0", "pi-4"),
        ("aarch64", "64", "Raspberry Pi Compute Module 4 Rev 1.1", "pi-4"),
        ("aarch64", "64", "Raspberry Pi 5 Model B Rev 1.0", "pi-5"),
        ("aarch64", "64", "Raspberry Pi 500 Rev 1.0", "pi-5"),
        ("aarch64", "64", "Some other board", "pi-3"),
        ("riscv64", "64", "", None),
    ],
)
def test_a_device_is_told_by_what_it_says(
    machine: str, bits: str, board: str, target: str | None
) -> None:
    assert target_of(machine, bits, board) == target


@pytest.mark.parametrize(
    ("program", "code", "said", "kind", "message"),
    [
        ("ssh", 255, "", Missing, "kitchen: the connection was lost (exit code 255)"),
        ("sh", 1, "error: bad; worse\n", VerificationFailed, "kitchen: bad; worse"),
        ("sh", 4, "noise\nerror: no; get it\n", Missing, "kitchen: no; get it"),
        ("sh", 127, "sh: tar: not found\n", BadInput, "kitchen: sh: tar: not found"),
        ("sh", 2, "tar: x: No space left on device\n", BadInput, "kitchen: no space left there"),
        ("scp", 1, "scp: write: Failure\n", BadInput, "kitchen: the bundle was not copied"),
    ],
)
def test_what_a_device_says_keeps_its_exit_code(
    program: str, code: int, said: str, kind: type[Exception], message: str
) -> None:
    error = Device("kitchen").error(program, code, said)
    assert type(error) is kind
    assert str(error).startswith(message)


def test_a_report_is_the_last_line_of_what_a_login_printed() -> None:
    assert reported('Welcome!\n{"a": 1}\n') == {"a": 1}
    for text in ("Welcome!\n", "7\n", ""):
        assert reported(text) is None
    assert latencies("nothing") == latencies({"a": 1}) == []


# --- A device that a script stands for ------------------------------------------------------------

FINDING = {"what": "runtime litert int8", "state": "WRONG", "found": "9 steps off", "mend": "mend"}


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Deployed]:
    """Deploys by an ssh that this is the shell's `case` of; scp copies nothing."""

    def call(cases: str) -> Deployed:
        script = f"#!/bin/sh\nfor last; do :; done\ncase $last in\n{cases}\nesac\n"
        for name, text in {"ssh": script, "scp": "#!/bin/sh\n"}.items():
            (tmp_path / name).write_text(text)
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
        installation = Installation("stem", "name", python=True)
        return run_deployment(Device("pi@x"), installation, tmp_path / "archive")

    return call


@pytest.mark.parametrize(
    ("step", "left"),
    [
        ("*mkdir*", "what was installed there is as it was"),
        ("*install.sh*", "the new version may be installed there"),
        ("*doctor*", "the new version is installed there"),
    ],
)
def test_what_a_lost_connection_leaves_depends_on_the_step(
    step: str, left: str, scripted: Callable[[str], Deployed]
) -> None:
    error = scripted(f"{step}) exit 255 ;;").error
    assert isinstance(error, Missing)
    assert error.mend == f"give the command again; {left}"


def test_the_error_of_a_doctor_is_what_it_reports_and_the_rest_is_run(
    scripted: Callable[[str], Deployed],
) -> None:
    deployed = scripted(
        f"*doctor*) echo Welcome; echo '{json.dumps([FINDING])}'; exit 1 ;;\n"
        "*bench*) echo '{\"model-index\": []}' ;;"
    )
    assert type(deployed.error) is VerificationFailed
    assert str(deployed.error) == "pi@x: runtime litert int8: 9 steps off; mend"
    assert deployed.reports == {"doctor": [FINDING], "bench": {"model-index": []}}


def test_the_error_of_a_selftest_says_what_failed(scripted: Callable[[str], Deployed]) -> None:
    result = {"passed": False, "runtime": "litert 2", "precision": "int8"}
    error = scripted(f"*selftest*) echo '{json.dumps([result])}'; exit 1 ;;").error
    assert str(error) == "pi@x: the selftest failed (litert 2); do not use it there; see its doctor"


def test_a_login_that_prints_is_no_report(scripted: Callable[[str], Deployed]) -> None:
    deployed = scripted("*doctor*) echo Welcome; echo 'error: no; get it' >&2; exit 4 ;;")
    assert deployed.reports == {}
    assert str(deployed.error) == "pi@x: no; get it"
    show_device("pi@x", deployed.reports)


def test_what_is_not_utf_8_is_told_all_the_same(scripted: Callable[[str], Deployed]) -> None:
    deployed = scripted(r"*install.sh*) printf 'error: gr\366\337er; mend\n' >&2; exit 3 ;;")
    assert str(deployed.error) == "pi@x: gr��er; mend"


def test_report_names_are_plain() -> None:
    assert report_name("pi@kitchen.local") == "device-pi-kitchen.local.json"
    assert report_name("pi@[fe80::1%eth0]") == "device-pi-fe80-1-eth0.json"


def test_a_host_is_checked() -> None:
    for good in ("kitchen", "pi@kitchen.local", "pi@192.168.1.7"):
        assert Device(good).command("true")[-2] == good
        assert Device(good).copying(Path("a"), "b")[-1] == f"{good}:b"
    for address in ("pi@[fe80::1%eth0]", "pi@fe80::1%eth0"):  # brackets are for scp alone
        assert Device(address).command("true")[-2] == "pi@fe80::1%eth0"
        assert Device(address).copying(Path("a"), "b")[-1] == "pi@[fe80::1%eth0]:b"
    for bad in ("", "-v", "pi@", "a b", "x;y", "$(x)"):
        with pytest.raises(UsageError):
            Device(bad)


# --- Several devices ------------------------------------------------------------------------------


class TestFleet:
    pytestmark = needs_sshd

    @pytest.fixture
    def inventory(self, keys: Path, tmp_path: Path) -> Callable[[dict[str, Board]], list[str]]:
        """The options that name an inventory of boards."""

        def write(boards: dict[str, Board]) -> list[str]:
            path = tmp_path / "boards.yaml"
            # Ansible may find another Python first, one that only some folders are given.
            known = {"pipeline_target": "host", "ansible_python_interpreter": sys.executable}
            hosts = dict.fromkeys(boards, known)
            path.write_text(json.dumps({"all": {"hosts": hosts}}))
            config = ssh_config(keys, boards, tmp_path)
            return ["--inventory", str(path), "--ssh-config", str(config)]

        return write

    def test_the_first_that_fails_ends_it(
        self,
        board: Callable[..., Board],
        inventory: Callable[[dict[str, Board]], list[str]],
        packed: Path,
        tmp_path: Path,
    ) -> None:
        boards = {"attic": board("attic"), "kitchen": board("kitchen"), "shed": board("shed")}
        broken = f"{broken_processor(tmp_path)}:{os.environ['PATH']}"
        boards["kitchen"] = board("kitchen", PATH=broken)
        done = deploy(packed, *inventory(boards), "--json")
        assert done.returncode == 1, done.stderr
        result: dict[str, Any] = json.loads(done.stdout)
        assert result["attic"]["reached"] and result["attic"]["error"] is None
        assert "the selftest failed here" in result["kitchen"]["error"]
        assert result["shed"] == {"reached": False, "error": None, "report": None}
        assert boards["attic"].works()
        assert not boards["kitchen"].current.exists() and not boards["shed"].current.exists()
        report = json.loads(Path(result["attic"]["report"]).read_text())
        assert report["selftest"]["passed"] and report["bench"]["inferences"] == 20

    def test_all_are_installed(
        self,
        board: Callable[..., Board],
        inventory: Callable[[dict[str, Board]], list[str]],
        packed: Path,
    ) -> None:
        boards = {name: board(name) for name in ("attic", "kitchen")}
        done = deploy(packed, *inventory(boards))
        assert done.returncode == 0, done.stderr
        assert all(one.works() for one in boards.values())
        assert [line.split()[:2] for line in done.stdout.splitlines() if "installed" in line] == [
            ["attic", "installed"],
            ["kitchen", "installed"],
        ]

    def test_one_that_cannot_be_reached_is_said(
        self,
        board: Callable[..., Board],
        inventory: Callable[[dict[str, Board]], list[str]],
        packed: Path,
    ) -> None:
        one = board()
        options = inventory({"kitchen": one})
        one.server.kill()
        one.server.wait()
        done = deploy(packed, *options)
        assert done.returncode == 4
        assert "enable ssh there" in done.stderr


def test_an_inventory_without_devices_is_refused(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "boards.ini").write_text("[boards]\n")
    done = deploy(trained, "--inventory", str(tmp_path / "boards.ini"))
    assert done.returncode == 3
    assert "there is no device in it" in done.stderr


def test_a_target_that_is_no_text_is_named_with_its_device(trained: Path, tmp_path: Path) -> None:
    hosts = {"attic": {"pipeline_target": 4}, "shed": {}}
    (tmp_path / "boards.yaml").write_text(json.dumps({"all": {"hosts": hosts}}))
    done = deploy(trained, "--inventory", str(tmp_path / "boards.yaml"))
    assert done.returncode == 3
    assert "pipeline_target of attic is 4" in done.stderr and done.stderr.count("\n") == 1


def test_an_inventory_needs_c_too(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "boards.ini").write_text("attic\n")
    done = deploy(trained, "--inventory", str(tmp_path / "boards.ini"), "--runtime", "onnx")
    assert done.returncode == 2
    assert "add c to --runtime" in done.stderr


def test_an_inventory_is_printed_as_a_playbook(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "boards.ini").write_text("attic\nshed\n")
    done = deploy(trained, "--inventory", str(tmp_path / "boards.ini"), "--dry-run")
    assert done.returncode == 0, done.stderr
    (play,) = json.loads(done.stdout)
    assert list(play["vars"]["devices"]) == ["attic", "shed"]
    assert play["serial"] == 1 and play["any_errors_fatal"] is True


def test_devices_of_two_releases_get_a_bundle_each(trained: Path, tmp_path: Path) -> None:
    (tmp_path / "boards.ini").write_text("attic pipeline_os=trixie\nshed\n")
    inventory = ["--inventory", str(tmp_path / "boards.ini"), "--target", "pi-4", "--dry-run"]
    done = called("deploy", "--run", "small", *inventory, runs=trained)
    assert done.returncode == 0, done.stderr
    devices = json.loads(done.stdout)[0]["vars"]["devices"]
    archives = {host: Path(known["archive"]).name for host, known in devices.items()}
    assert archives == {
        "attic": "lenet5-classic-pi-4-trixie-bundle.tar.gz",
        "shed": "lenet5-classic-pi-4-bundle.tar.gz",
    }
