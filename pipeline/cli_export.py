"""`pipeline export`: a run's files, or C from an ONNX file of any origin."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from .cli_options import (
    DRY_RUN,
    FORMAT,
    JSON,
    PRECISION,
    RUN,
    chosen_of,
    flags,
    given_options,
    print_json,
    show_plan,
)
from .errors import UsageError


@click.command()
@click.argument("file", required=False, type=click.Path(path_type=Path))
@RUN
@FORMAT
@PRECISION
@click.option(
    "--output",
    "-o",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help="Where C of FILE goes.",
)
@click.option("--overwrite", is_flag=True, help="Replace C that is in FOLDER already.")
@DRY_RUN
@JSON
def export(
    file: Path | None,
    run_name: str | None,
    formats: str,
    precisions: str,
    output: Path | None,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Export a run to the files that runtimes read; int8 quantizes first where need be. Or generate
    C from an ONNX FILE of any origin.

    \b
    Examples:
      pipeline export --format onnx
      pipeline export --format onnx,tflite --precision int8
      pipeline export some-model.onnx --format c -o some-model-c
    """
    if file is not None:
        if dry_run:
            raise UsageError("--dry-run is for a run, not for a FILE", "leave it out")
        _export_file(file, formats, output, overwrite, as_json)
        return
    if output is not None or overwrite:
        raise UsageError("--output and --overwrite belong to a FILE", "leave them out for a run")
    chosen = chosen_of(formats, precisions)
    from .console import say
    from .export import export_run
    from .run_exports import in_float, without_c
    from .run_folder import RunFolder

    run = RunFolder.open(run_name, dry_run)
    made = export_run(run, *chosen)
    if dry_run:
        show_plan(run, as_json)
        return
    if as_json:
        files = [
            {"file": str(run.path / name), "made": new, "bytes": run.entry(name)["bytes"]}
            for name, new in made.items()
        ]
        print_json({"run": run.name, "files": files})
        return
    for name, new in made.items():
        size = f"{run.entry(name)['bytes']:,} bytes"
        click.echo(f"{run.path / name}  {size}{'' if new else ' (unchanged)'}")
    if "c" in chosen[0] and "int8" in chosen[1] and in_float(run):
        say(without_c(run))
    say(f"next: pipeline verify{flags(formats, precisions)}")


def _export_file(
    file: Path,
    formats: str,
    output: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """C from an ONNX file that no run knows of."""
    if formats != "c" or output is None:
        raise UsageError(
            f"{file}: of a file only C is generated, into a folder", "give --format c -o FOLDER"
        )
    if {"run_name", "precisions"} & set(given_options()):
        raise UsageError("--run and --precision do not go with a FILE", "leave them out")
    from .console import say
    from .export import export_file

    generated = export_file(file, output, overwrite)
    if as_json:
        facts = {"arena": generated.arena, "peak": generated.peak, "optimum": generated.optimum}
        print_json({"folder": str(output), "files": sorted(generated.files), **facts})
        return
    click.echo(f"{output}  {len(generated.files)} files, an arena of {generated.arena:,} bytes")
    say(f"next: make -C {shlex.quote(str(output))}")
