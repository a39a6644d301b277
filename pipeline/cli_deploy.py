"""`pipeline deploy`: a bundle onto one device, or onto all of an inventory."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .cli_options import (
    JSON,
    PRECISION,
    RUN,
    given_options,
    order_of,
    print_json,
    system_option,
    target_option,
)
from .errors import UsageError, VerificationFailed

if TYPE_CHECKING:
    from .package import Order
    from .run_folder import RunFolder


@click.command()
@click.argument("host", required=False, metavar="[USER@]HOST")
@RUN
@target_option("As for package. Default: the device is asked.")
@system_option("bookworm or trixie. Default: likewise.")
@click.option("--runtime", "runtimes", default="auto", show_default=True, help="As for package.")
@PRECISION
@click.option("--wheelhouse", is_flag=True, help="Copy the wheels too: it needs no network there.")
@click.option("--no-python", is_flag=True, help="Install the program and the library alone.")
@click.option("--prefix", metavar="FOLDER", help="Where to. Default: as install.sh.")
@click.option("--count", type=int, default=1000, show_default=True, help="Inferences to time.")
@click.option(
    "--ssh-config",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    metavar="FILE",
    help="Instead of your own configuration of ssh.",
)
@click.option(
    "--inventory",
    type=click.Path(path_type=Path, exists=True),
    metavar="FILE",
    help="All devices of an Ansible inventory, one after another.",
)
@click.option("--dry-run", is_flag=True, help="Print the commands instead.")
@JSON
def deploy(host: str | None, inventory: Path | None, **options: Any) -> None:
    """Copy a bundle to a device by ssh, install it, run doctor, selftest and bench there, and bring
    the report back into the run folder.

    A bundle that was packed for the device before is taken as it is, with its wheels and
    precisions, unless options say otherwise. With --inventory all its devices get it through
    Ansible, one after another, until one fails; its variables pipeline_target and pipeline_os say
    what each one is.

    \b
    Examples:
      pipeline deploy pi@raspberrypi.local
      pipeline deploy pi@kitchen --target pi-zero --dry-run
      pipeline deploy --inventory boards.yaml --target pi-4
    """
    if (host is None) == (inventory is None):
        raise UsageError("deploy takes a device or an --inventory", "give one of the two")
    if inventory is not None:
        _deploy_fleet(inventory, options)
    else:
        _deploy_one(str(host), options)


def _order(run: RunFolder, options: dict[str, Any], target: str, system: str | None) -> Order:
    """What is asked for; where nothing is, as the bundle of the target that was packed before."""
    from .package import Order

    if not {"runtimes", "precisions", "wheelhouse"} & given_options().keys():
        packed = Order.as_packed(run, target, system)
        if packed is not None and packed.is_native:
            return packed
    return order_of(options, target, system)


def _deploy_one(host: str, options: dict[str, Any]) -> None:
    from .console import Steps, say
    from .deployment import Device, commands, deploy, installation_of, keep_report
    from .deployment.detect import detect
    from .package import bundle_name, package_run
    from .run_folder import RunFolder

    device = Device(host, options["ssh_config"])
    run = RunFolder.open(options["run_name"])
    target, system = options["target"], options["system"]
    if options["dry_run"] and target is None:
        raise UsageError("--dry-run asks no device what it is", "give --target")
    if target is None:
        target, found = detect(device)
        system = system or found
        say(f"{host} is a {target}{f' with {system}' if system else ''}")
    order = _order(run, options, target, system)
    python = not options["no_python"]
    installation = installation_of(run, order, python, options["prefix"], options["count"])
    archive = run.path / bundle_name(run, order.place)
    if options["dry_run"]:
        planned = commands(device, installation, archive)
        if options["as_json"]:
            print_json({"dry_run": True, "commands": planned})
            return
        for command in planned:
            click.echo(shlex.join(command))
        return
    package_run(run, order, on_note=say)
    with Steps() as steps:
        deployed = deploy(
            device, installation, archive, on_step=lambda name: steps(f"{host}: {name}")
        )
    report = keep_report(run, host, order, deployed)
    if options["as_json"]:
        print_json(
            {
                "run": run.name,
                "host": host,
                "target": target,
                "report": report and str(report),
                **deployed.reports,
            }
        )
    else:
        from .deployment.show import show_device

        show_device(host, deployed.reports)
    if report is not None:
        say(f"the device's report: {report}")
    if deployed.error is not None:
        raise deployed.error


def _deploy_fleet(inventory: Path, options: dict[str, Any]) -> None:
    from .console import Steps, say
    from .deployment import installation_of, keep_report
    from .deployment.fleet import SYSTEM, TARGET, Plan, deploy_fleet, inventory_hosts, playbook
    from .package import bundle_name, package_run
    from .run_folder import RunFolder

    run = RunFolder.open(options["run_name"])
    orders, plans = {}, {}
    for host, known in inventory_hosts(inventory).items():
        target = known.get(TARGET, options["target"])
        if target is None:
            raise UsageError(
                f"{host}: nothing says what it is", f"give --target, or {TARGET} in the inventory"
            )
        orders[host] = _order(run, options, target, known.get(SYSTEM, options["system"]))
        python = not options["no_python"]
        installation = installation_of(
            run, orders[host], python, options["prefix"], options["count"]
        )
        plans[host] = Plan(installation, run.path / bundle_name(run, orders[host].place))
    if options["dry_run"]:
        print_json(playbook(plans))
        return
    for order in dict.fromkeys(orders.values()):
        package_run(run, order, on_note=say)
    with Steps() as steps:
        results = deploy_fleet(inventory, plans, options["ssh_config"], on_step=steps)
    reports = {
        host: keep_report(run, host, orders[host], deployed)
        for host, deployed in results.items()
        if deployed is not None
    }
    if options["as_json"]:
        print_json(
            {
                host: {
                    "reached": deployed is not None,
                    "error": str(deployed.error) if deployed and deployed.error else None,
                    "report": str(reports[host]) if reports.get(host) else None,
                }
                for host, deployed in results.items()
            }
        )
    else:
        from .deployment.show import show_fleet

        show_fleet(results)
    errors = [deployed.error for deployed in results.values() if deployed and deployed.error]
    if errors:
        raise errors[0]
    if None in results.values():
        raise VerificationFailed("Ansible ended before all devices were reached", "see --dry-run")
