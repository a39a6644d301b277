"""Inside the machine of machine.py: how systemd holds the service that serves, as JSON."""

import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

ADDRESS = "http://127.0.0.1:8080"
PATIENCE = 120  # seconds
WATCHDOG = 20  # seconds, instead of the unit's own

service, picture = sys.argv[1:]


def systemctl(*words: str) -> str:
    done = subprocess.run(
        ["systemctl", "--user", *words], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


def shown(name: str) -> str:
    return systemctl("show", "--value", "-p", name, service)


def after(process: int) -> int:
    """The main process that is active once that one is gone, 0 where none comes."""
    begun = time.monotonic()
    while time.monotonic() < begun + PATIENCE:
        found = int(shown("MainPID"))
        if found not in (0, process) and shown("ActiveState") == "active":
            return found
        time.sleep(0.5)
    return 0


def answer() -> dict[str, object]:
    request = urllib.request.Request(f"{ADDRESS}/predict", Path(picture).read_bytes())
    with urllib.request.urlopen(request) as response:
        found: dict[str, object] = json.load(response)
        return found


def sandbox(process: int) -> dict[str, str]:
    """What the kernel says of a process: its user, its rights, and its root file system."""
    status = dict(re.findall(r"^(\w+):\s*(.*)$", Path(f"/proc/{process}/status").read_text(), re.M))
    mounts = Path(f"/proc/{process}/mountinfo").read_text().splitlines()
    found = {key: status[key] for key in ("Uid", "NoNewPrivs", "Seccomp", "CapEff")}
    # mount ID, parent ID, device, root, mount point, options: proc(5). The last one is on top.
    return found | {"/": [line.split()[5] for line in mounts if line.split()[4] == "/"][-1]}


first = int(shown("MainPID"))
found: dict[str, object] = {"state": shown("ActiveState"), "answer": answer()}
found["sandbox"] = sandbox(first)
os.kill(first, signal.SIGKILL)
second = after(first)
found["after SIGKILL"] = [second > 0, shown("NRestarts"), answer()]
change = Path(f"~/.config/systemd/user/{service}.d/soon.conf").expanduser()
change.parent.mkdir()
change.write_text(f"[Service]\nWatchdogSec={WATCHDOG}\n")
systemctl("daemon-reload")
systemctl("restart", service)
third = after(second)
os.kill(third, signal.SIGSTOP)  # it hangs
begun = time.monotonic()
fourth = after(third)
found["after SIGSTOP"] = [fourth > 0, time.monotonic() - begun, answer()]
systemctl("stop", service)
found["stopped"] = [shown("ActiveState"), shown("Result")]
print(json.dumps(found))
