"""Many devices through Ansible: a generated playbook takes them one after another and ends at the
first that fails.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import BadInput, Missing, UserError
from . import Deployed, Device, Installation
from .installation import COPY, INSTALL, Step, outcome

MEND = "run \"pip install 'pi-pipeline[fleet]'\""
TARGET, SYSTEM = "pipeline_target", "pipeline_os"  # variables of the inventory


@dataclass(frozen=True)
class Plan:
    """What one device of an inventory gets."""

    installation: Installation
    archive: Path


def inventory_hosts(inventory: Path) -> dict[str, dict[str, Any]]:
    """The variables of each device, in the inventory's order. Raises Missing without Ansible, and
    BadInput.
    """
    if importlib.util.find_spec("ansible_runner") is None:
        raise Missing("--inventory needs Ansible, which is not installed", MEND)
    command = [_program("ansible-inventory"), "-i", str(inventory.resolve()), "--list"]
    environment = os.environ | {"ANSIBLE_INVENTORY_UNPARSED_FAILED": "true"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=environment, errors="replace"
    )
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        said = next((line for line in lines if "ERROR" in line), (lines or ["no reason given"])[-1])
        raise BadInput(f"{inventory}: Ansible does not read it ({said.strip()})")
    groups = json.loads(done.stdout)
    known = groups["_meta"]["hostvars"]
    names: dict[str, None] = {}
    queue = ["all"]
    while queue:
        group = groups.get(queue.pop(0), {})
        names.update(dict.fromkeys(group.get("hosts", [])))
        queue = [*group.get("children", []), *queue]
    if not names:
        raise BadInput(f"{inventory}: there is no device in it")
    for name in names:
        for variable in (TARGET, SYSTEM):
            value = known.get(name, {}).get(variable, "")
            if not isinstance(value, str):
                raise BadInput(
                    f"{inventory}: {variable} of {name} is {value!r}, which is no name",
                    "give a --target or an --os of 'pipeline package'",
                )
    return {name: known.get(name, {}) for name in names}


def playbook(plans: Mapping[str, Plan]) -> list[dict[str, Any]]:
    """One play: the same steps for every device, with that device's own commands."""
    devices = {}
    reports: dict[str, None] = {}
    for host, plan in plans.items():
        known = plan.installation
        steps = [known.prepare, *known.rest, known.tidy]
        reports.update(dict.fromkeys(step.name for step in known.rest if step.is_report))
        devices[host] = {step.name.replace(" ", "_"): step.command for step in steps}
        devices[host] |= {"archive": str(plan.archive.resolve()), "to": f"~/{known.archive}"}
    first = next(iter(plans.values())).installation
    names = [first.prepare.name, COPY, INSTALL, *reports]
    tasks = [_task(name, may_be_left_out=name in reports) for name in names]
    play = {
        "name": "Deploy",
        "hosts": "all",
        "gather_facts": False,
        "serial": 1,
        "any_errors_fatal": True,
        "vars": {"devices": devices, "device": "{{ devices[inventory_hostname] }}"},
        "tasks": [{"block": tasks, "always": [_task(first.tidy.name)]}],
    }
    return [play]


def _task(name: str, may_be_left_out: bool = False) -> dict[str, Any]:
    task: dict[str, Any] = {"name": name}
    if name == COPY:
        copy = {"src": "{{ device.archive }}", "dest": "{{ device.to }}", "mode": "0600"}
        return task | {"ansible.builtin.copy": copy}
    variable = f"device.{name.replace(' ', '_')}"
    task["ansible.builtin.shell"] = f"{{{{ {variable} }}}}"
    return task | {"when": f"{variable} is defined"} if may_be_left_out else task


def deploy_fleet(
    inventory: Path,
    plans: Mapping[str, Plan],
    config: Path | None = None,
    on_step: Callable[[str], None] = lambda _: None,
) -> dict[str, Deployed | None]:
    """What came of each device; None of those that were not reached. `config` is for ssh."""
    import ansible_runner

    results: dict[str, Deployed | None] = dict.fromkeys(plans)

    def on_event(event: dict[str, Any]) -> None:
        data = event.get("event_data", {})
        host, task, result = data.get("host"), data.get("task"), data.get("res", {})
        if event["event"] == "runner_on_start":
            on_step(f"{host}: {task}")
        if event["event"] not in ("runner_on_ok", "runner_on_failed", "runner_on_unreachable"):
            return
        before = results[host] or Deployed({})
        steps = {step.name: step for step in plans[host].installation.rest}
        step = steps.get(task, Step(task, ""))
        error = None
        if event["event"] != "runner_on_ok":
            error = _error(Device(host), event["event"], result, step.left)
        report, error = outcome(host, step, result.get("stdout", ""), error)
        reports = before.reports if report is None else before.reports | {task: report}
        results[host] = Deployed(reports, before.error or error)

    options = ["-o", "BatchMode=yes", *(["-F", str(config.resolve())] if config else [])]
    with tempfile.TemporaryDirectory(prefix="pipeline-") as work:
        ansible_runner.run(
            private_data_dir=work,
            playbook=playbook(plans),
            inventory=str(inventory.resolve()),
            event_handler=on_event,
            quiet=True,
            envvars={
                "PATH": os.pathsep.join([str(_programs()), os.environ.get("PATH", os.defpath)]),
                "ANSIBLE_HOME": f"{work}/ansible",
                "ANSIBLE_SSH_COMMON_ARGS": shlex.join(options),
                # One that an earlier call left open may lead elsewhere by another configuration.
                "ANSIBLE_SSH_ARGS": "-o ControlMaster=auto -o ControlPersist=10s",
                "ANSIBLE_SSH_CONTROL_PATH_DIR": f"{work}/cp",
            },
        )
    return results


def _error(device: Device, event: str, result: dict[str, Any], left: str) -> UserError:
    """What Ansible tells of a failure, as the same failure by ssh is told."""
    if event == "runner_on_unreachable":
        return device.error("ssh", 255, str(result.get("msg", "")), left)
    # Where Ansible's own module did not run, what was said there is in module_stdout.
    said = result.get("stderr") or result.get("module_stdout") or result.get("msg", "")
    return device.error("sh", int(result.get("rc", 3)), str(said), left)


def _programs() -> Path:
    """Where the programs of this environment are; it need not be the active one."""
    return Path(sys.executable).parent


def _program(name: str) -> str:
    return str(_programs() / name)
