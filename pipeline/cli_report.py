"""`pipeline bench`, `pipeline report` and `pipeline compare`: what a run is worth, to look at."""

from __future__ import annotations

import webbrowser
from typing import Any

import click

from .cli_options import DRY_RUN, JSON, RUN, print_json, runs_beginning, show_plan
from .errors import UsageError


@click.command()
@RUN
@click.option(
    "--count", type=int, default=1000, show_default=True, help="Inferences to time, each way."
)
@DRY_RUN
@JSON
def bench(run_name: str | None, count: int, dry_run: bool, as_json: bool) -> None:
    """Time a run's files on this machine, as the runner's own bench does on a device.

    \b
    Example:
      pipeline bench --count 5000
    """
    if count < 1:
        raise UsageError(f"--count {count}", "give 1 or more")
    from .bench import bench_run
    from .console import Steps, out, say
    from .deployment.show import show_latencies
    from .run_folder import RunFolder

    run = RunFolder.open(run_name, dry_run)
    with Steps() as steps:
        card = bench_run(run, count, on_row=lambda row: steps(f"timed {row.choice}"))
    if dry_run:
        show_plan(run, as_json)
    elif as_json:
        print_json(card)
    if dry_run or as_json:
        return
    show_latencies("this machine", card)
    for choice, reason in card["unusable"].items():
        say(f"{choice}: {reason}")
    if card["recommendation"]:
        out().print(f"recommended here: {card['recommendation']}")
    say("next: pipeline report")


@click.command()
@RUN
@click.option("--open", "show", is_flag=True, help="Show it in the browser.")
@click.option("--model-card", is_flag=True, help="A model card in Markdown, too.")
@DRY_RUN
@JSON
def report(
    run_name: str | None, show: bool, model_card: bool, dry_run: bool, as_json: bool
) -> None:
    """Write a run's report: one HTML file that needs nothing else, and its facts as JSON.

    \b
    Examples:
      pipeline report --open
      pipeline report --run trial --model-card
    """
    from .console import say
    from .report import CARD, PAGE, report_run
    from .run_folder import RunFolder

    run = RunFolder.open(run_name, dry_run)
    facts = report_run(run, card=model_card)
    if dry_run:
        show_plan(run, as_json)
        return
    if as_json:
        print_json(facts)
    else:
        for name in (PAGE, CARD) if model_card else (PAGE,):
            click.echo(f"{run.path / name}  {run.entry(name)['bytes']:,} bytes")
    for failure in facts["verdict"]["failures"]:
        say(f"{failure['what']}; {failure['mend']}")
    if show and not webbrowser.open((run.path / PAGE).resolve().as_uri()):
        say(f"no browser here: open {run.path / PAGE}")


@click.command()
@click.argument("names", nargs=-1, metavar="RUN RUN...", shell_complete=runs_beginning)
@JSON
def compare(names: tuple[str, ...], as_json: bool) -> None:
    """Put runs of one data set side by side.

    \b
    Example:
      pipeline compare lenet5-mnist lenet5-classic-mnist
    """
    from .compare import compare as compared
    from .console import table
    from .run_folder import RunFolder

    rows = compared([RunFolder.open(name) for name in names])
    if as_json:
        print_json({"runs": rows})
        return
    columns = ("run", "", "parameters", "accuracy", "95 % interval", "verified", "KB", "p50 us")
    table("runs", columns, [_compared(row) for row in rows], text=("",))


def _compared(row: dict[str, Any]) -> list[str]:
    verified = {True: "yes", False: "FAILED", None: "no"}[row["verified"]]
    sizes = [size / 1e3 for name, size in row["bytes"].items() if not name.endswith("-c")]
    latency = row["p50_us"]
    return [
        row["run"],
        row["precision"],
        f"{row['parameters']:,}",
        f"{row['accuracy']:.2%}" if row["accuracy"] is not None else "",
        "{:.2%} to {:.2%}".format(*row["interval"]) if row["interval"] else "",
        verified,
        f"{min(sizes):,.0f}" if sizes else "",
        f"{latency:,.1f}" if latency is not None else "",
    ]
