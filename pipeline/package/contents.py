"""The files of a bundle that are neither models nor compiled, and are made for it alone."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Sequence
from importlib.metadata import distribution
from importlib.resources import files as resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

import deploy
from deploy.runner.contract import default_precision
from deploy.runner.scores import probabilities, steps

from .. import program
from ..data import Dataset
from ..export import carried, contract_of
from ..run_folder import RunFolder
from .archive import INSTALL
from .order import Order, install_name, package_name
from .targets import PYTHONS, Place

GOLDEN_IMAGES = 32
EXAMPLE = "example"
C_SOURCES = """
`make -C c/$folder` makes `classify` of the $c_precision model, which needs no Python.
"""
NATIVE_PYTHON = """
The runner in Python takes the library, or a runtime (`--runtime`), and reads PNG and JPEG. Once
installed$numpy:

    cd ~/.local/share/$prefix/current
    $interpreter bundle/runner.pyz doctor
    $interpreter bundle/runner.pyz predict bundle/$example

`doctor` says what works on this board and what mends the rest; `bench` times all that works and
recommends one of it; `predict --camera` takes a picture with picamera2; `serve` shows a page to
draw on, at http://127.0.0.1:8080/, and answers programs there.
"""
PAGE = "runner/serve/page"
EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's earliest date
NUMPY = "sudo apt install python3-numpy"
# How the zipapp starts. It must parse on every Python; the runner itself does not.
START = f"""\
import sys

if sys.version_info[:2] < (3, 11):
    sys.stderr.write(
        "error: the runner needs Python 3.11 or newer, this is %d.%d; "
        "use Raspberry Pi OS bookworm or newer, or classify\\n" % sys.version_info[:2]
    )
    sys.exit(4)
try:
    import numpy
except ImportError as error:
    reason = (str(error).splitlines() or ["it is broken"])[0]
    sys.stderr.write("error: the runner needs NumPy (%s); run '{NUMPY}'\\n" % reason)
    sys.exit(4)

from deploy.runner.__main__ import main

sys.exit(main())
"""


def golden_vectors(
    run: RunFolder, order: Order, dataset: Dataset
) -> tuple[dict[str, Any], bytes, int]:
    """By precision the contract; golden.npz, images and what the program makes of them; and which
    of those is answered rightly with the most certainty.
    """
    contracts, golden = {}, {}
    images, truth = dataset.test.images[:GOLDEN_IMAGES], dataset.test.labels[:GOLDEN_IMAGES].numpy()
    for precision in order.precisions:
        module = program.load(run.need(run.artefact(precision, "pt2")))
        kind = next(kind for name, kind in order.artefacts if name == precision)
        contract = carried(run, contract_of(run, module, precision), kind)
        contracts[precision] = json.loads(contract.to_json())
        scores = program.run(module, images)[0].numpy()
        golden[precision] = steps(scores, contract.output) if contract.output else scores
    of_truth = probabilities(scores.astype(np.float64), contract)[np.arange(len(truth)), truth]
    return contracts, _npz(images=images.numpy(), **golden), int(of_truth.argmax())


def example_picture(dataset: Dataset, index: int) -> tuple[str, bytes]:
    """A name and a test image, in the format that nothing needs a library for."""
    image = dataset.test.images[index].permute(1, 2, 0).contiguous()
    height, width, channels = image.shape
    letter, kind = ("P5", "pgm") if channels == 1 else ("P6", "ppm")
    head = f"{letter} {width} {height} 255\n".encode()
    return f"{EXAMPLE}.{kind}", head + image.numpy().tobytes()


def requirements_of(order: Order) -> dict[str, bytes]:
    """The files of requirements for pip. ARMv7 has no wheels of NumPy: there it is the system's."""
    files = {}
    for runtime in order.runtimes:
        text = (Path(deploy.__file__).parent / "requirements" / f"{runtime}.txt").read_text()
        if order.place is not None and order.place.target.wheels == "armv7l":
            text = "".join(re.findall(rf"^{runtime}==.*\n(?: .*\n)*", text, re.MULTILINE))
        files[f"requirements-{runtime}.txt"] = text.encode()
    return files


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def readme(run: RunFolder, order: Order, folders: Sequence[str], example: str, label: str) -> bytes:
    """The folder's own README: of a bundle for a target, or of one for any 64-bit Linux."""
    known = {
        "model": run.model,
        "labels": ", ".join(run.training["labels"]),
        "precision": order.first,
        "c_precision": default_precision(order.in_c) if order.in_c else "",
        "example": example,
        "label": label,
    }
    requirements = [f"requirements-{name}.txt" for name in order.runtimes]
    if order.place is not None and order.is_native:
        python = NATIVE_PYTHON if order.place.has_python else ""
        known |= {"hardware": order.place.target.hardware, "prefix": install_name(run)}
        # For C alone install.sh makes no environment: NumPy is the system's.
        known["interpreter"] = "venv/bin/python" if requirements else "python3"
        of_system = not requirements or order.place.target.wheels == "armv7l"
        known["numpy"] = f" (with NumPy: `{NUMPY}`)" if of_system else ""
        known["python"] = Template(python).substitute(known)
        return _filled("native-readme.md", known)
    c = C_SOURCES if folders else ""
    known |= {
        "requirements": requirements[0],
        "others": ", ".join(f"`{name}`" for name in requirements[1:]) or "(none in this bundle)",
        "c": Template(c).substitute(known, folder="".join(folders)),
    }
    return _filled("bundle-readme.md", known)


def _filled(name: str, known: dict[str, str]) -> bytes:
    text = (resources("pipeline.package") / name).read_text()
    return Template(text).substitute(known).encode()


def installer(run: RunFolder, place: Place, order: Order) -> bytes:
    """install.sh."""
    names = " ".join(order.runtimes)
    known = {
        "name": install_name(run),
        "service": package_name(run),
        "hardware": place.target.hardware,
        "requirements": names,
        "python": place.python,
        "numpy": NUMPY,
        # Of this machine there is no other release to order.
        "releases": " ".join(f"{python}:{name}" for name, python in PYTHONS.items())
        if place.system
        else "",
    }
    known["runtimes"] = f"one of: {names}" if names else "(none: the bundle has C alone)"
    return _filled(INSTALL, known)


def waitress() -> dict[str, bytes]:
    """The Python of the web server as it is installed here, by path."""
    files = distribution("waitress").files or []
    return {
        path.as_posix(): path.read_binary()
        for path in files
        if path.parts[0] == "waitress" and path.suffix == ".py"
    }


def zipapp(folder: Path) -> bytes:
    """The runner as one executable file: the `deploy` package's Python, the page of `serve`, and
    waitress, zipped, after a #! line.
    """
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as app:
        entries = {
            f"deploy/{path.relative_to(folder).as_posix()}": path.read_bytes()
            for path in (*folder.rglob("*.py"), *(folder / PAGE).iterdir())
        } | waitress()
        entries["__main__.py"] = START.encode()
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            app.writestr(info, entries[name])
    return b"#!/usr/bin/env python3\n" + buffer.getvalue()
