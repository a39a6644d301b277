"""The command line on the device: `python runner.pyz --help`.

predict, serve, bench, selftest, doctor and info are about the bundle; compute runs any model file.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from . import __version__, camera, serve
from .backends import BACKENDS, Model, open_first, open_with
from .bench import bench
from .bundle import Bundle
from .compute import compute
from .contract import PRECISIONS
from .doctor import examine, exit_code
from .errors import INTERRUPTED, BadInput, Missing, UsageError, UserError
from .images import decode, prepare
from .scores import probabilities, real
from .selftest import GOLDEN, selftest
from .sweep import HEAD, Row, line, model_card, recommended, sweep


def bundle_folder() -> Path:
    """The folder of the zipapp: a bundle is where its runner is."""
    return Path(sys.argv[0]).resolve().parent


def _files(args: argparse.Namespace, bundle: Bundle) -> dict[str, Path]:
    files = bundle.models(args.precision or bundle.default_precision())
    if args.runtime is None:
        return files
    suffix = BACKENDS[args.runtime].SUFFIX
    if suffix not in files:
        raise Missing(
            f"the bundle has no {suffix} file for {args.runtime}", "choose another runtime"
        )
    return {suffix: files[suffix]}


def _open(args: argparse.Namespace, bundle: Bundle) -> Model:
    files = _files(args, bundle)
    if args.runtime is None:
        return open_first(files, args.threads or 1)
    return open_with(args.runtime, next(iter(files.values())), args.threads or 1)


def _read(name: str) -> bytes:
    if name == "-":
        return sys.stdin.buffer.read()
    try:
        return Path(name).read_bytes()
    except FileNotFoundError as error:
        raise Missing(f"{name}: no such file") from error
    except OSError as error:
        raise Missing(f"{name}: cannot be read ({error.strerror})") from error


def predict(args: argparse.Namespace, bundle: Bundle) -> int:
    """Classify every picture; one that is bad is reported, and the others are still answered."""
    model = _open(args, bundle)
    contract = model.contract
    answers: list[dict[str, Any]] = []
    exit_code = 0
    for name in [camera.NAME] if args.camera else args.files:
        try:
            image = camera.capture() if args.camera else decode(_read(name), name)
            pixels = prepare(image, contract.input_shape, contract.preparation)
        except (UserError, MemoryError) as raised:
            large = BadInput(f"{name}: too large for the memory here", "give a smaller picture")
            error = large if isinstance(raised, MemoryError) else raised
            print(f"error: {error}", file=sys.stderr)
            exit_code = error.exit_code
            continue
        blank = contract.preparation == "glyph" and not pixels.any()
        if blank:
            print(f"note: {name}: no ink found, the answer means nothing", file=sys.stderr)
        scores = real(model.run(pixels[None])[0], contract.output)
        chances = probabilities(scores, contract)[0]
        order = np.argsort(-chances, kind="stable")[: args.top]
        answers.append(
            {
                "file": name,
                "blank": blank,
                "label": contract.labels[order[0]],
                "unsure": bool(chances[order[0]] < args.reject),
                "probability": float(chances[order[0]]),
                "top": [[contract.labels[i], float(chances[i])] for i in order],
            }
        )
    if args.json:
        print(json.dumps({"runtime": model.runtime, "answers": answers}))
        return exit_code
    for answer in answers:
        ranking = "  ".join(f"{label} {chance:.1%}" for label, chance in answer["top"])
        unsure = "unsure: " if answer["unsure"] else ""
        print(f"{answer['file']}: {unsure}{ranking}")
    return exit_code


def _golden_images(bundle: Bundle) -> npt.NDArray[np.uint8]:
    with np.load(bundle.folder / GOLDEN, allow_pickle=False) as golden:
        return np.asarray(golden["images"])


def run_bench(args: argparse.Namespace, bundle: Bundle) -> int:
    """Time one way to run the model in this process, or all that are not ruled out, each in its
    own.
    """
    if not (args.runtime and args.precision and args.threads):
        return _sweep(args, bundle)
    files = _files(args, bundle)
    file = ", ".join(path.name for path in files.values())
    modules = [BACKENDS[args.runtime].MODULE]
    images = _golden_images(bundle)
    timing = bench(modules, lambda: _open(args, bundle), file, images, args.count)
    if args.json:
        print(json.dumps(asdict(timing)))
        return 0
    print(f"{timing.runtime}, {timing.inferences} inferences, one image each")
    print(f"import           {timing.import_ms:9.1f} ms")
    print(f"load             {timing.load_ms:9.1f} ms")
    print(f"first inference  {timing.first_ms:9.3f} ms")
    print(f"p50  p90  p99    {timing.p50_us:9.1f} {timing.p90_us:9.1f} {timing.p99_us:9.1f} us")
    print(f"peak memory      {timing.peak_mb:9.1f} MB")
    return 0


def _sweep(args: argparse.Namespace, bundle: Bundle) -> int:
    _files(args, bundle)  # what the bundle has no file for is an error, not an empty table

    def show(row: Row) -> None:
        if not args.json:
            print(line(row), flush=True)

    if not args.json:
        print(HEAD)
    rows = sweep(bundle, args.runtime, args.precision, args.threads, args.count, show)
    best = recommended(rows)
    if args.json:
        print(json.dumps(model_card(bundle, rows)))
    elif best is not None:
        print(f"recommended: {best.choice}")
    if best is None:
        raise Missing("no runtime works here", "see the command doctor")
    return 0


def run_doctor(args: argparse.Namespace, bundle: Bundle) -> int:
    """What this device is, what works on it, and what mends the rest."""
    findings = examine(bundle)
    if args.json:
        print(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            print(f"{finding.state:6}{finding.what:32}{finding.found}")
            if finding.mend:
                print(f"{'':38}-> {finding.mend}")
    return exit_code(findings)


def run_selftest(args: argparse.Namespace, bundle: Bundle) -> int:
    """Replay the golden vectors, in every precision of the bundle unless one is named."""
    wanted = [args.precision] if args.precision else sorted(bundle.manifest["contracts"])
    results = []
    for precision in wanted:
        args.precision = precision
        results.append(selftest(bundle, _open(args, bundle)))
    if args.json:
        print(json.dumps([asdict(result) | {"passed": result.passed} for result in results]))
    else:
        for result in results:
            verdict = "passed" if result.passed else "FAILED"
            print(
                f"{verdict}: {result.precision} on {result.runtime}, {result.images} images, "
                f"{result.equal:.2%} of scores equal, largest difference {result.largest:.3g} "
                f"(limit {result.limit:.3g}) {result.unit}"
            )
    return 0 if results and all(result.passed for result in results) else 1


def run_info(args: argparse.Namespace, bundle: Bundle) -> int:
    """What the bundle holds, and which runtimes work here."""
    precision = args.precision or bundle.default_precision()
    files = bundle.models(precision)
    contract = bundle.contract(precision)
    runtimes: dict[str, str] = {}
    for name, backend in BACKENDS.items():
        if backend.SUFFIX not in files:
            continue
        try:
            runtimes[name] = open_with(name, files[backend.SUFFIX], args.threads or 1).runtime
        except UserError as error:
            runtimes[name] = f"not usable: {error}"
    record = {
        "runner": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "contract": json.loads(contract.to_json()),
        "models": bundle.manifest["models"],
        "runtimes": runtimes,
    }
    if args.json:
        print(json.dumps(record))
        return 0
    shape = " x ".join(str(size) for size in contract.input_shape)
    print(f"model     {contract.model}, trained on {contract.dataset}, default {precision}")
    print(f"input     {shape} ({contract.layout}), prepared as a {contract.preparation}")
    print(f"labels    {', '.join(contract.labels)}")
    for name, model in bundle.manifest["models"].items():
        print(f"file      {name}, {model['accuracy']:.2%} of the test pictures right")
    for name, state in runtimes.items():
        print(f"runtime   {name}: {state}")
    return 0


def run_serve(args: argparse.Namespace, bundle: Bundle) -> int:
    """A page to draw on, and answers over HTTP, until it is ended."""
    return serve.run(args, _open(args, bundle))


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _share(text: str) -> float:
    with contextlib.suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no probability, from 0 to 1")


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong, as every other error is told."""

    def error(self, message: str) -> NoReturn:
        """Exit with the code of a wrong usage."""
        told = UsageError(message, f"see '{self.prog} --help'")
        self.exit(told.exit_code, f"error: {told}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="runner.pyz", description="Run the model of this bundle.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"runner {__version__}")
    shared = _Parser(add_help=False)
    shared.add_argument("--bundle", type=Path, help="the unpacked bundle (default: beside me)")
    shared.add_argument("--runtime", choices=list(BACKENDS), help="default: the first that works")
    shared.add_argument("--precision", choices=PRECISIONS, help="default: int8")
    shared.add_argument("--threads", type=_positive, help="default: 1")
    shared.add_argument("--json", action="store_true", help="print one JSON document")
    commands = parser.add_subparsers(dest="command", required=True)
    command = commands.add_parser("predict", parents=[shared], help="classify pictures")
    command.add_argument("files", nargs="*", metavar="FILE", help="a picture; - reads stdin")
    command.add_argument("--camera", action="store_true", help="take a picture with picamera2")
    command.add_argument("--top", type=_positive, default=3, help="labels to show (default 3)")
    command.add_argument(
        "--reject", type=_share, default=0.0, metavar="P", help="unsure below this probability"
    )
    command = commands.add_parser("serve", parents=[shared], help="a page to draw on, over HTTP")
    serve.add_options(command)
    command = commands.add_parser("bench", parents=[shared], help="measure time and memory")
    command.add_argument("--count", type=_positive, default=1000, help="inferences (default 1000)")
    commands.add_parser("selftest", parents=[shared], help="replay the golden vectors")
    commands.add_parser("doctor", parents=[shared], help="examine this device")
    commands.add_parser("info", parents=[shared], help="what is here, and what works")
    command = commands.add_parser(
        "compute", help="run any model, for a program on stdin and stdout"
    )
    command.add_argument("--runtime", choices=list(BACKENDS), required=True)
    return parser


COMMANDS: dict[str, Callable[[argparse.Namespace, Bundle], int]] = {
    "predict": predict,
    "serve": run_serve,
    "bench": run_bench,
    "selftest": run_selftest,
    "doctor": run_doctor,
    "info": run_info,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, check the bundle, run one command. Returns the exit code."""
    args = _parser().parse_args(arguments)
    try:
        if args.command == "compute":
            compute(args.runtime, sys.stdin.buffer)
            return 0
        if args.command == "predict":
            if bool(args.files) == args.camera:
                raise UsageError("predict takes pictures, FILE, or --camera", "give one of the two")
            if args.files.count("-") > 1:
                raise UsageError("stdin can be read once", "give '-' once")
        bundle = Bundle.open((args.bundle or bundle_folder()).resolve())
        exit_code = COMMANDS[args.command](args, bundle)
        sys.stdout.flush()
        return exit_code
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0


if __name__ == "__main__":
    sys.exit(main())
