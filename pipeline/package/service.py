"""A systemd unit that says at every start whether the bundle is intact and computes what it should.

SD cards wear out, and a system's update may bring another processor's kernel or another C library.
"""

from __future__ import annotations

from importlib.resources import files as resources
from string import Template

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


def service(model: str, folder: str, *, of_user: bool) -> bytes:
    """The unit for a bundle in `folder`: for the system's manager, or for a user's, who needs no
    root for it.
    """
    text = (resources("pipeline.package") / "service.unit").read_text()
    known = {"model": model, "folder": folder, "sandbox": "" if of_user else SANDBOX}
    known["wanted"] = "default.target" if of_user else "multi-user.target"
    return Template(text).substitute(known).encode()
