#!/usr/bin/python3 -I
"""Inside the machine of machine.py: its first process, and what it is booted for.

/job.json has the commands, and whether systemd is to run them.
"""

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

LIBC = ctypes.CDLL(None, use_errno=True)
BIND, MOVE = 4096, 8192  # MS_BIND, MS_MOVE
POWER_OFF = 0x4321FEDC  # LINUX_REBOOT_CMD_POWER_OFF
SYSTEMD = "/usr/lib/systemd/systemd"
HOME = "home/pi"  # of the root
ETC = {
    "passwd": f"root:x:0:0::/root:/bin/sh\npi:x:1000:1000::/{HOME}:/bin/sh\n",
    "group": "root:x:0:\npi:x:1000:\n",
    "machine-id": f"{1:032x}\n",
    "systemd/system/job.target": "[Unit]\nRequires=job.service\n",
    "systemd/system/job.service": (
        "[Unit]\nWants=user@1000.service sandboxed.service\n"
        "After=user@1000.service sandboxed.service\n"
        "[Service]\nType=oneshot\nExecStart=/usr/bin/python3 -I /init commands\n"
    ),
    # Some service of the system's has a sandbox, everywhere; systemd 252 then makes a folder that
    # those of users need.
    "systemd/system/sandboxed.service": (
        "[Service]\nType=oneshot\nExecStart=/usr/bin/true\nProtectSystem=strict\n"
    ),
    # A login would do this, by PAM and logind.
    "systemd/system/user-runtime-dir@.service": (
        "[Service]\nType=oneshot\nRemainAfterExit=yes\n"
        "ExecStart=/usr/bin/install -d -m 700 -o %i -g %i /run/user/%i\n"
    ),
    "systemd/system/user@.service.d/no-login.conf": (
        "[Service]\nPAMName=\nEnvironment=XDG_RUNTIME_DIR=/run/user/%i\n"
    ),
}


def mount(source: str, place: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """mount(2)."""
    given = [text.encode() or None for text in (source, place, kind)]
    if LIBC.mount(*given, flags, options.encode() or None) != 0:
        raise OSError(ctypes.get_errno(), f"mount {source} {place}")


def into_a_root_for_sandboxes() -> None:
    """A sandbox cannot be made below the root that a kernel starts with: one in memory goes over
    it, with the same files.
    """
    new = Path("/new")
    new.mkdir()
    mount("tmpfs", "/new", "tmpfs", 0, "mode=755")
    for path in sorted(Path("/").iterdir()):
        if path.is_symlink():
            (new / path.name).symlink_to(path.readlink())
        elif path.is_dir() and path != new:
            (new / path.name).mkdir()
            moved = path.name in ("proc", "sys", "dev")
            mount(str(path), str(new / path.name), flags=MOVE if moved else BIND)
        elif path.is_file():
            (new / path.name).write_bytes(path.read_bytes())
    for name in ("run", "var/tmp", "etc", HOME):
        (new / name).mkdir(parents=True)
    os.chown(new / HOME, 1000, 1000)
    for name in ("tmp", "var/tmp"):
        (new / name).chmod(0o1777)
    for name, content in ETC.items():
        (new / "etc" / name).parent.mkdir(parents=True, exist_ok=True)
        (new / "etc" / name).write_text(content)
    os.chdir(new)
    mount(".", "/", flags=MOVE)
    os.chroot(".")
    os.chdir("/")


def run(commands: list[list[str]]) -> None:
    """One after the other, saying on the console how each ended; then the machine is off."""
    os.environ.update(PATH="/usr/sbin:/usr/bin", HOME="/root", LC_ALL="C.UTF-8")
    with Path("/dev/console").open("w") as console:
        for command in commands:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            answer = json.dumps([done.returncode, done.stdout, done.stderr])
            print(f"\n@{answer}", file=console, flush=True)
    LIBC.reboot(POWER_OFF)


def main() -> None:
    """As /init, or what systemd is told to run."""
    job = json.loads(Path("/job.json").read_text())
    if sys.argv[1:] == ["commands"]:
        run(job["commands"])
        return
    for kind, place in (("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")):
        mount(kind, place, kind)
    if job["systemd"]:
        into_a_root_for_sandboxes()
        os.execv(SYSTEMD, [SYSTEMD, "--unit=job.target"])
    run(job["commands"])


main()
