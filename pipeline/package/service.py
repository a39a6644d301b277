"""A systemd unit that says at every start whether the bundle is intact and computes what it should,
and one that then serves.

SD cards wear out, and a system's update may bring another processor's kernel or another C library.
"""

from __future__ import annotations

from importlib.resources import files as resources
from string import Template

SERVE_UNIT = "serve.service"  # in the bundle; installed, it has the name of the other one
# These take privileges that only the system's own manager has.
SANDBOX = """\
DynamicUser=yes
CapabilityBoundingSet=
ProtectSystem=strict
ProtectHome=yes
ProtectProc=invisible
ProcSubset=pid
ProtectClock=yes
ProtectControlGroups=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
PrivateDevices=yes
PrivateNetwork=yes
PrivateUsers=yes
"""


CHECK = """\
ExecStart=env ./classify --selftest
Type=oneshot
RemainAfterExit=yes
"""
# Without PrivateUsers a user's own manager cannot make the file system read-only. What is wrong
# with options, files or the port is not mended by starting again. MemoryMax: the largest runtime,
# and a picture of as many pixels as are taken.
SERVE = """\
ExecStartPre=env ./classify --selftest
ExecStart=env ../venv/bin/python runner.pyz serve $$OPTIONS
# RUNNER_TOKEN=... and OPTIONS=--host 0.0.0.0 --port 8080, say
EnvironmentFile=-%E/$name.env
Type=notify
WatchdogSec=120
TimeoutStopSec=30
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=2 3 4
MemoryMax=400M
PrivateUsers=yes
ProtectSystem=strict
ProtectHome=read-only
PrivateTmp=yes
"""


def service(model: str, folder: str, *, of_user: bool) -> bytes:
    """The unit for a bundle in `folder`: for the system's manager, or for a user's, who needs no
    root for it.
    """
    known = {"purpose": "intact, and computing here what was trained", "start": CHECK}
    known |= {"families": "none", "sandbox": "" if of_user else SANDBOX}
    return _filled(model, folder, "default.target" if of_user else "multi-user.target", known)


def serving(model: str, name: str, folder: str) -> bytes:
    """The user's unit called `name` that serves the page, by the Python that install.sh made."""
    known = {"purpose": "a page to draw on", "start": Template(SERVE).substitute(name=name)}
    known |= {"families": "AF_INET AF_INET6 AF_UNIX", "sandbox": ""}
    return _filled(model, folder, "default.target", known)


def _filled(model: str, folder: str, wanted: str, known: dict[str, str]) -> bytes:
    text = (resources("pipeline.package") / "service.unit").read_text()
    return Template(text).substitute(known, model=model, folder=folder, wanted=wanted).encode()
