"""Deployment: a bundle is copied to a device, installed and tested there, and its report brought
back.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UsageError, UserError
from ..package import Order, bundle_name, bundle_stem, install_name
from ..run_folder import RunFolder
from .installation import COPY, Installation, outcome
from .ssh import Device

__all__ = [
    "Deployed",
    "Device",
    "Installation",
    "commands",
    "deploy",
    "installation_of",
    "keep_report",
    "report_name",
]


@dataclass(frozen=True)
class Deployed:
    """What came of it: the steps' reports by their names, and the error that ended it, if any."""

    reports: dict[str, Any]
    error: UserError | None = None


def installation_of(
    run: RunFolder, order: Order, python: bool, prefix: str | None, count: int
) -> Installation:
    """The way of the run's bundle. Raises UsageError."""
    order = order.of_run(run)
    if not order.is_native:
        raise UsageError(
            "deploy without C: what install.sh tests on any board is compiled", order.mend_for_c
        )
    stem = bundle_stem(run, order.place)
    python = python and bool(order.runtimes)
    return Installation(stem, install_name(run), python, prefix, count)


def commands(device: Device, installation: Installation, archive: Path) -> list[list[str]]:
    """All that is run here, in order."""
    steps = [installation.prepare, *installation.rest, installation.tidy]
    lines = [device.command(step.command) for step in steps]
    lines.insert(1, device.copying(archive, installation.archive))
    return lines


def deploy(
    device: Device,
    installation: Installation,
    archive: Path,
    on_step: Callable[[str], None] = lambda _: None,
) -> Deployed:
    """Copy, install, test and measure. The first error of a step is in the result, with all
    reports: what was installed before is as it was unless the step "install" was done.
    """
    reports: dict[str, Any] = {}
    first: UserError | None = None
    on_step(installation.prepare.name)
    _, error = device.attempt(installation.prepare.command)
    if error is not None:  # nothing is there to be tidied up, and perhaps no device that answers
        return Deployed(reports, error)
    try:
        on_step(COPY)
        device.copy(archive, installation.archive)
        for step in installation.rest:
            on_step(step.name)
            ended = device.attempt(step.command, step.left)
            report, error = outcome(device.host, step, *ended)
            first = first or error
            if report is not None:
                reports[step.name] = report
            elif error is not None:  # one that has reported what is wrong ends nothing
                break
    except UserError as error:
        first = error
    finally:  # if this fails, the next deployment does it
        device.attempt(installation.tidy.command)
    return Deployed(reports, first)


def report_name(host: str) -> str:
    """The file in the run folder that a device's report is kept in."""
    plain = re.sub(r"[^\w.-]+", "-", host, flags=re.ASCII).strip("-")
    return f"device-{plain}.json"


def keep_report(run: RunFolder, host: str, order: Order, deployed: Deployed) -> Path | None:
    """Write what a device has reported into the run folder; nothing where it has reported nothing.

    {"host", "target", "os", "error": a line or null, "doctor", "selftest", "bench"}: the last three
    as the runner prints them with --json, or `classify`, as far as the deployment went.
    """
    if not deployed.reports:
        return None
    assert order.place is not None
    error = None if deployed.error is None else str(deployed.error)
    facts = {"host": host, "target": order.place.name, "os": order.place.system, "error": error}
    name = report_name(host)
    bundle = bundle_name(run, order.place)
    run.commit_json(name, facts | deployed.reports, {"host": host}, [bundle])
    return run.path / name
