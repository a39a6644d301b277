"""Options that several commands of the command line share, and how their values are read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from .errors import UsageError, unknown
from .precisions import FORMATS, PRECISIONS, USUAL, refuse_without_file, with_a_file

if TYPE_CHECKING:
    from .checkpoint import TrainConfig
    from .network import Network
    from .package import Order
    from .run_folder import RunFolder

FC = TypeVar("FC", bound=Callable[..., Any] | click.Command)  # what click's options decorate


def split(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """A comma-separated choice, or `all`."""
    chosen = tuple(part.strip() for part in text.split(","))
    if chosen == ("all",):
        return tuple(known)
    for name in chosen:
        if name not in known:
            raise unknown(option, name, [*known, "all"])
    return tuple(dict.fromkeys(chosen))


def chosen_of(formats: str, precisions: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What --format and --precision name; all precisions are those that come in a format that is
    named. Raises UsageError.
    """
    kinds = split("format", formats, FORMATS)
    chosen = split("precision", precisions, PRECISIONS)
    if precisions == "all":
        chosen = with_a_file(kinds)
    refuse_without_file(kinds, chosen)
    return kinds, chosen


def order_of(options: dict[str, Any], target: str | None, system: str | None) -> Order:
    """The bundle that --runtime, --precision and --wheelhouse, and --format and --compiler where a
    command has them, ask for. Raises UsageError.
    """
    from .package import Order
    from .package.archive import KINDS

    runtimes = options["runtimes"]
    formats = () if runtimes == "auto" else split("runtime", runtimes, FORMATS)
    chosen = split("precision", options["precisions"], PRECISIONS)
    kind = options.get("kind", KINDS[0])
    return Order.of(
        formats, chosen, target, system, options["wheelhouse"], kind, options.get("compiler")
    )


def flags(formats: str, precisions: str, of_formats: str = "--format") -> str:
    """The options of a command, for the hint at the next one."""
    given = {of_formats: (formats, "all"), "--precision": (precisions, ",".join(USUAL))}
    return "".join(
        f" {option} {value}" for option, (value, default) in given.items() if value != default
    )


def shape_of(text: str | None) -> tuple[int, int, int] | None:
    """C,H,W. Raises UsageError."""
    if text is None:
        return None
    parts = text.replace("x", ",").split(",")
    if len(parts) != 3 or not all(part.strip().isdigit() for part in parts):
        raise UsageError(f"--input-shape {text}", "give C,H,W, as in 3,48,64")
    channels, height, width = (int(part) for part in parts)
    return channels, height, width


def runs_beginning(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    """The runs that a shell proposes."""
    from .run_folder import known_runs

    return _beginning(begun, known_runs())


def _targets(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    from .package.targets import TARGETS

    return _beginning(begun, TARGETS)


def _systems(_context: click.Context, _parameter: click.Parameter, begun: str) -> list[str]:
    from .package.targets import PYTHONS

    return _beginning(begun, PYTHONS)


def _beginning(begun: str, names: Iterable[str]) -> list[str]:
    return [name for name in names if name.startswith(begun)]


def run_option(which: str) -> Callable[[FC], FC]:
    """--run; `which` is its help."""
    return click.option(
        "--run", "run_name", metavar="NAME", shell_complete=runs_beginning, help=which
    )


def target_option(which: str) -> Callable[[FC], FC]:
    """--target; `which` is its help."""
    return click.option("--target", metavar="BOARD", shell_complete=_targets, help=which)


def system_option(which: str) -> Callable[[FC], FC]:
    """--os; `which` is its help."""
    return click.option("--os", "system", metavar="RELEASE", shell_complete=_systems, help=which)


SEED = click.IntRange(0, 2**32 - 1)  # that NumPy's and torch's generators tell apart

SUBJECT = [
    click.option(
        "--model",
        default="lenet5",
        show_default=True,
        help="lenet5, lenet5-classic, mlp, or your own FILE.py:ClassName.",
    ),
    click.option(
        "--dataset",
        default="digits",
        show_default=True,
        help="digits, mnist, fashion-mnist, or a FOLDER with one subfolder per class.",
    ),
    click.option("--activation", help="Another activation, where the model has a choice."),
    click.option("--input-shape", metavar="C,H,W", help="Where the class does not say."),
    click.option("--epochs", type=int, help="Default: by data set."),
    click.option("--seed", type=SEED, default=0, show_default=True),
    click.option(
        "--augment/--no-augment",
        default=None,
        help="Random affine and elastic distortion. Default: by data set.",
    ),
    click.option(
        "--device",
        type=click.Choice(["auto", "cpu", "cuda"]),
        default="auto",
        show_default=True,
    ),
    click.option(
        "--data-dir",
        type=click.Path(path_type=Path),
        help="Where IDX files lie. Default: PIPELINE_DATA_DIR, else download.",
    ),
]
RECIPE = [
    click.option("--batch-size", type=int, help="Default: by data set."),
    click.option("--lr", type=float, help="Peak learning rate. Default: by model and batch size."),
    click.option("--weight-decay", type=float, help="Default: the model's."),
    click.option("--label-smoothing", type=float, help="Default: the model's."),
    click.option("--distortion", type=float, help="How much of it, beside the usual 1."),
    run_option("Default: MODEL-DATASET."),
]


def subject_options(command: Any) -> Any:
    """The options that say what is trained, on what."""
    for option in reversed(SUBJECT):
        command = option(command)
    return command


def training_options(command: Any) -> Any:
    """The options that say what is trained and how."""
    for option in reversed(RECIPE):
        command = option(command)
    return subject_options(command)


def training(options: dict[str, Any]) -> tuple[Network, TrainConfig, str]:
    """(network, TrainConfig, run name) from the options; checks what can be checked first.

    What is not among the options, or None, is as by default.
    """
    from .checkpoint import TrainConfig
    from .data import DATASETS, usual_training
    from .network import find_network
    from .train import choose_device
    from .train_stage import check_settings

    def given(option: str, default: Any) -> Any:
        value = options.get(option)
        return default if value is None else value

    dataset: str = options["dataset"]
    if dataset not in DATASETS and not Path(dataset).is_dir():
        also = ", or a folder with one subfolder per class"
        raise unknown("data set", dataset, DATASETS, also)
    network = find_network(
        options["model"], options["activation"], shape_of(options["input_shape"])
    )
    usual = usual_training(dataset)
    augment = given("augment", usual.augment)
    batch_size = given("batch_size", usual.batch_size)
    if options.get("distortion") is not None:
        if options["augment"] is False:
            raise UsageError("--distortion and --no-augment", "leave out one of them")
        augment = True
    config = TrainConfig(
        model=options["model"],
        dataset=dataset,
        epochs=given("epochs", usual.epochs),
        learning_rate=given("lr", network.learning_rate(batch_size)),
        batch_size=batch_size,
        seed=options["seed"],
        device=choose_device(options["device"]),
        activation=options["activation"],
        input_shape=network.input_shape,
        data_dir=str(options["data_dir"]) if options["data_dir"] else None,
        augment=augment,
        label_smoothing=given("label_smoothing", network.label_smoothing()),
        weight_decay=given("weight_decay", network.weight_decay()),
        distortion=given("distortion", TrainConfig.distortion),
    )
    check_settings(config)
    name = options.get("run_name") or f"{network.name}-{Path(dataset).resolve().name}".lower()
    return network, config, name


def given_options() -> dict[str, str]:
    """The options that the person gave on the command line: by name, as they are spelled."""
    context = click.get_current_context()
    return {
        parameter.name: parameter.opts[0]
        for parameter in context.command.params
        if parameter.name is not None
        and context.get_parameter_source(parameter.name) is click.core.ParameterSource.COMMANDLINE
    }


def print_json(document: Any) -> None:
    """One JSON document, on stdout."""
    click.echo(json.dumps(document, indent=1))


RUN = run_option("The run (default: the newest).")
JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")
DRY_RUN = click.option(
    "--dry-run", is_flag=True, help="Tell which files would be written, and write none."
)


def show_plan(run: RunFolder, as_json: bool) -> None:
    """What a dry run found."""
    print_plan({run.path / name: action for name, action in (run.plan or {}).items()}, as_json)


def print_plan(plan: dict[Path, str], as_json: bool) -> None:
    """What a dry run would do to each file."""
    if as_json:
        files = [{"file": str(path), "action": action} for path, action in plan.items()]
        print_json({"dry_run": True, "files": files})
        return
    for path, action in plan.items():
        click.echo(f"{path}  {action}")


FORMAT = click.option(
    "--format",
    "formats",
    default="all",
    show_default=True,
    help="onnx, tflite, c, or some by comma.",
)
PRECISION = click.option(
    "--precision",
    "precisions",
    default=",".join(USUAL),
    show_default=True,
    help=f"{', '.join(PRECISIONS)}, some by comma, or all.",
)
