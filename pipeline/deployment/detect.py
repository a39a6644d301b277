"""Which of the targets a device is: it is asked, where nobody says."""

from __future__ import annotations

import platform
import re

from ..errors import UsageError
from ..package.targets import PYTHONS, TARGETS
from .ssh import Device

# Four lines: processor, bits of its programs (a 64-bit kernel may run 32-bit ones), board, release.
QUESTION = """\
uname -m
getconf LONG_BIT
tr -d '\\0' </proc/device-tree/model 2>/dev/null; echo
(. /etc/os-release && echo "$VERSION_CODENAME")"""
BOARDS = (  # the boards with 64 bits, by what their device tree calls them
    (r"Raspberry Pi (5|Compute Module 5)", "pi-5"),  # 500 is one, too
    (r"Raspberry Pi (4|Compute Module 4)", "pi-4"),  # 400 is one, too
    (r"Raspberry Pi Zero 2", "pi-zero-2"),
)
WEAKEST = "pi-3"  # what any 64-bit ARM can run


def detect(device: Device) -> tuple[str, str | None]:
    """(target, release of its system). Raises UsageError where it is none that is known, and what
    `Device.run` raises.
    """
    answer = device.run(QUESTION).splitlines()[-4:]
    if len(answer) < 4:
        raise UsageError(f"{device.host}: it does not say what it is", "give --target")
    machine, bits, board, release = (line.strip() for line in answer)
    target = target_of(machine, bits, board)
    if target is None:
        raise UsageError(
            f"{device.host}: no target fits its processor ({machine}, {bits} bits)",
            f"give --target, one of {', '.join(TARGETS)}",
        )
    if not TARGETS[target].board:
        return target, None
    if release not in PYTHONS:
        raise UsageError(
            f"{device.host}: its system is {release or 'unknown'}, not {' or '.join(PYTHONS)}",
            "give --target and --os, with --no-python where its Python is older",
        )
    return target, release


def target_of(machine: str, bits: str, board: str) -> str | None:
    """The target, from what `uname -m`, `getconf LONG_BIT` and the device tree say."""
    if machine == "armv6l":
        return "pi-zero"
    if bits == "32" and machine in ("armv7l", "armv8l", "aarch64"):
        return "pi-32"
    if machine == "aarch64" and bits == "64":
        return next((name for words, name in BOARDS if re.match(words, board)), WEAKEST)
    return "host" if machine == platform.machine() else None
