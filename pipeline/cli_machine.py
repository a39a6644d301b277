"""`pipeline doctor` and `pipeline completion`: about the machine at hand, not about a run."""

from __future__ import annotations

import dataclasses
import sys

import click
from click.shell_completion import get_completion_class

from .cli_options import JSON, print_json
from .errors import unknown

SHELLS = ("bash", "zsh", "fish")


@click.command()
@JSON
def doctor(as_json: bool) -> None:
    """What this machine has for the pipeline, and the command that mends what it lacks. Exit code 4
    when every run would miss it.

    \b
    Example:
      pipeline doctor
    """
    from .console import say, table
    from .doctor import complete, examine

    findings = examine()
    if as_json:
        print_json([dataclasses.asdict(finding) for finding in findings])
    else:
        names = ("what", "state", "found", "mend")
        rows = [[getattr(finding, name) for name in names] for finding in findings]
        table("this machine", names, rows, text=names)
    if not complete(findings):
        say("something is missing that every run needs")
        sys.exit(4)


@click.command()
@click.argument("shell", metavar="bash|zsh|fish")
def completion(shell: str) -> None:
    """Print what completes commands, options and names in your shell.

    \b
    Examples:
      pipeline completion bash >> ~/.bashrc
      pipeline completion zsh >> ~/.zshrc
      pipeline completion fish > ~/.config/fish/completions/pipeline.fish
    """
    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None:
        raise unknown("shell", shell, SHELLS)
    root = click.get_current_context().find_root().command
    click.echo(kind(root, {}, "pipeline", "_PIPELINE_COMPLETE").source())
