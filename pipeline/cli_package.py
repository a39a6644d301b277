"""`pipeline package`: make a bundle for a board, or check one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .cli_options import (
    DRY_RUN,
    JSON,
    PRECISION,
    RUN,
    given_options,
    order_of,
    print_json,
    show_plan,
    system_option,
    target_option,
)
from .errors import UsageError


@click.command()
@RUN
@target_option("pi-zero, pi-32, pi-zero-2, pi-3 to pi-5, host.")
@system_option("bookworm (default) or trixie.")
@click.option(
    "--runtime",
    "runtimes",
    default="auto",
    show_default=True,
    help="What runs there: c, onnx, tflite, some by comma, or all that can.",
)
@PRECISION
@click.option("--wheelhouse", is_flag=True, help="Pack the wheels too: installs without network.")
@click.option(
    "--format", "kind", default="tar.gz", show_default=True, help="tar.gz, or deb for dpkg."
)
@click.option(
    "--compiler", help="Of C for a board: zig, or Debian's cross gcc. Default: what is here."
)
@click.option(
    "--sign",
    type=click.Path(path_type=Path),
    metavar="PRIVATE.pem",
    help="Sign it. Make a key with 'openssl genpkey -algorithm ed25519 -out PRIVATE.pem'; the "
    "passphrase of an encrypted one is taken from PIPELINE_SIGN_PASSPHRASE.",
)
@click.option(
    "--check",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Check a bundle instead of making one.",
)
@click.option(
    "--key",
    type=click.Path(path_type=Path),
    metavar="PUBLIC.pem",
    help="With --check: whose signature it must have. 'openssl pkey -in PRIVATE.pem -pubout' "
    "prints the public key.",
)
@DRY_RUN
@JSON
def package(dry_run: bool, as_json: bool, **options: Any) -> None:
    """Pack what was verified into a bundle for a board; without --target for any 64-bit Linux.

    \b
    Examples:
      pipeline package
      pipeline package --target pi-zero
      pipeline package --target pi-4 --os trixie --runtime c,tflite --wheelhouse
      pipeline package --target pi-5 --format deb --sign private.pem
      pipeline package --check runs/lenet5-digits/lenet5-bundle.tar.gz --key public.pem
    """
    if options["check"] is not None:
        _check(options["check"], options["key"], as_json)
        return
    if options["key"] is not None:
        raise UsageError("--key belongs to --check", "to sign, give --sign PRIVATE.pem")
    from .console import say
    from .package import bundle_name, package_run, signing_key
    from .run_exports import without_c
    from .run_folder import RunFolder

    target = options["target"]
    order = order_of(options, target, options["system"])
    key = signing_key(options["sign"]) if options["sign"] is not None else None
    run = RunFolder.open(options["run_name"], dry_run)
    name = bundle_name(run, order.place, order.kind)
    before = run.record["artefacts"].get(name)
    made = package_run(run, order, key, on_note=say)
    if dry_run:
        show_plan(run, as_json)
        return
    path = run.path / name
    size = run.entry(name)["bytes"]
    if as_json:
        print_json({"run": run.name, "file": str(path), "made": made, "bytes": size})
        return
    click.echo(f"{path}  {size:,} bytes{'' if made else ' (unchanged)'}")
    if made and before is not None and before["config"] != run.entry(name)["config"]:
        say(f"note: it takes the place of another of this name, of {before['bytes']:,} bytes")
    if order.in_c != (in_c := order.of_run(run).in_c):
        say(without_c(run))
    if in_c and "c" not in run.entry(name)["config"]:
        say("note: C is not in it, since nothing compiled it for 'pipeline verify'; install gcc")
    there = "" if target == "host" else "copy it to the Pi, and there: "
    deb = order.kind == "deb"
    say(
        f"next: {there}"
        + (f"sudo apt install ./{name}" if deb else "unpack it, follow its README.md")
    )


def _check(file: Path, key: Path | None, as_json: bool) -> None:
    for name, option in given_options().items():
        if name not in ("check", "key", "as_json"):
            raise UsageError(f"{option} does not go with --check", "leave it out")
    from .package import check_archive, check_signed

    manifest = check_archive(file) if key is None else check_signed(file, key)
    if as_json:
        print_json(manifest)
        return
    signed = "" if key is None else f", signed by the owner of {key}"
    click.echo(f"{file}: intact, {len(manifest['files'])} files{signed}")
