"""Package: what a person copies to the device, one archive, the same bytes every time."""

from __future__ import annotations

import gzip
import io
import json
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import distribution
from importlib.resources import files as resources
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

import deploy
from deploy.runner import bundle
from deploy.runner.backends import BACKENDS
from deploy.runner.contract import PRECISIONS
from deploy.runner.scores import steps

from .. import __version__, program
from ..data import dataset_of
from ..errors import BadInput, Missing, UsageError, VerificationFailed
from ..export import contract_of
from ..run_folder import RunFolder
from ..verify import REPORT
from .native import CLASSIFY, library_name, native_files, try_out
from .targets import TARGETS, Place, place_of
from .wheelhouse import wheelhouse

PACKED = ("onnx", "tflite")  # what a runtime reads as it is
GOLDEN_IMAGES = 32
RUNNER = "runner.pyz"
INSTALL = "install.sh"
SUMS = "SHA256SUMS"  # as sha256sum reads it: install.sh checks them before there is any Python
EXECUTABLES = {RUNNER, INSTALL, CLASSIFY}
GZIP_HEADER = bytes.fromhex("1f8b08000000000002ff")  # no name, no time, no system
C_SOURCES = """
`make -C c/$folder` makes `classify` of the $precision model, which needs no Python.
"""
NATIVE_PYTHON = """
The runner in Python takes the library, or a runtime (`--runtime`), and reads PNG and JPEG. Once
installed:

    cd ~/.local/share/$prefix/current
    venv/bin/python bundle/runner.pyz doctor
    venv/bin/python bundle/runner.pyz predict photo.jpg

`doctor` says what works on this board and what mends the rest; `bench` times all that works and
recommends one of it; `predict --camera` takes a picture with picamera2.
"""
EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's earliest date


@dataclass(frozen=True)
class Order:
    """What is to be packed: `formats` of onnx, tflite and c. Without a place it is for any 64-bit
    Linux, and C goes along as sources; `wheels`: all that pip would fetch, too.
    """

    formats: tuple[str, ...] = (*PACKED, "c")
    precisions: tuple[str, ...] = PRECISIONS
    place: Place | None = None
    wheels: bool = False

    @classmethod
    def of(
        cls,
        runtimes: Sequence[str],
        precisions: Sequence[str],
        target: str | None = None,
        system: str | None = None,
        wheels: bool = False,
    ) -> Order:
        """`runtimes` of onnx, tflite, c; or nothing, for all that the target can run. Raises
        UsageError for what is not possible.
        """
        if target is None and (system is not None or wheels):
            raise UsageError("--os and --wheelhouse belong to a --target", "name one")
        place = place_of(target, system) if target is not None else None
        formats = tuple(runtimes) or (place.formats if place else (*PACKED, "c"))
        if place is not None:
            place.refuse(formats)
        elif formats == ("c",):
            raise UsageError(
                "C alone is compiled for a target", f"give --target, one of {', '.join(TARGETS)}"
            )
        if wheels and not set(formats) & set(PACKED):
            raise UsageError("--wheelhouse without a runtime: C needs no wheels", "leave it out")
        return cls(formats, tuple(precisions), place, wheels)

    @property
    def first(self) -> str:
        """The precision that is taken where none is named."""
        return "int8" if "int8" in self.precisions else self.precisions[0]

    @property
    def is_native(self) -> bool:
        """Whether C is compiled for it."""
        return self.place is not None and "c" in self.formats

    @property
    def runtimes(self) -> list[str]:
        """The runtimes that can be installed for it, the recommended one first."""
        there = self.place.runtimes if self.place else tuple(BACKENDS)
        return [n for n, b in BACKENDS.items() if b.SUFFIX[1:] in self.formats and n in there]


def bundle_stem(run: RunFolder, target: str | None = None) -> str:
    """The name of a bundle and of the folder in it."""
    return f"{run.model}-{target}-bundle" if target else f"{run.model}-bundle"


def bundle_name(run: RunFolder, target: str | None = None) -> str:
    """The archive's file name in the run folder."""
    return f"{bundle_stem(run, target)}.tar.gz"


def package_run(
    run: RunFolder, order: Order | None = None, on_note: Callable[[str], None] = lambda _: None
) -> bool:
    """Write a bundle of the run. Returns whether it was made now (else it was current).

    Only what `verify` has passed is packed: raises VerificationFailed otherwise, UsageError,
    Missing, or BadInput for artefacts out of date. C that is compiled for a target is tried here if
    an emulator is here; sources go along unless no compiler was there to verify them.
    """
    order = order or Order()
    stem = bundle_stem(run, order.place.name if order.place else None)
    target = f"{stem}.tar.gz"
    models = [
        run.artefact(precision, name)
        for precision in order.precisions
        for name in PACKED
        if name in order.formats
    ]
    folders = _folders(run, order)
    config: dict[str, Any] = {"models": models, "pipeline": __version__}
    if folders:
        config["c"] = folders
    if order.place:
        config |= {"target": order.place.name, "os": order.place.system, "wheels": order.wheels}
        config["python"] = order.place.python
    if run.is_current(target, config):
        return False
    report = json.loads(run.need(REPORT).read_bytes())
    _refuse_unverified(run, report, [*models, *folders])
    contents = {model: run.need(model).read_bytes() for model in models}
    shipped = {model: model for model in models}  # file to what was verified
    if order.place is not None and order.is_native:
        native = native_files(run, order.place, order.precisions, order.first)
        try:
            try_out(order.place, native[CLASSIFY])
        except Missing as error:
            on_note(f"note: packed without being tried: {error}")
        contents |= native
        shipped |= {library_name(run, p): run.artefact(p, "c") for p in order.precisions}
    else:
        for name in folders:
            folder = run.need(name)
            for file in run.entry(name)["files"]:
                contents[f"c/{name}/{file}"] = (folder / file).read_bytes()
    contents["LICENSE"] = (distribution("pi-pipeline").read_text("licenses/LICENSE") or "").encode()
    contracts, golden = _golden(run, order)
    if order.place is None or order.place.has_python:
        contents |= {"golden.npz": golden, RUNNER: zipapp(Path(deploy.__file__).parent)}
        requirements = _requirements(order)
        contents |= requirements
        if order.wheels and order.place is not None:
            found = wheelhouse(requirements, order.place)
            contents |= {f"wheels/{name}": wheel for name, wheel in found.items()}
    contents["README.md"] = _readme(run, order, folders)
    if order.place is not None and order.is_native:
        contents[INSTALL] = _install(run, order.place, order)
        sums = (f"{bundle.sha256(content)}  {name}\n" for name, content in sorted(contents.items()))
        contents[SUMS] = "".join(sums).encode()
    verified = [a for a in report["artefacts"] if a["file"] in shipped.values() and a["shipped"]]
    int8 = [a for a in verified if a["precision"] == "int8"]
    manifest = {
        "schema": bundle.SCHEMA,
        "run": run.name,
        "pipeline_version": __version__,
        "contracts": contracts,
        "models": {file: _verdict(model, verified) for file, model in shipped.items()},
        # On the device a tie may fall otherwise than it did here: one step more than was found.
        "int8_steps": 1 + max((a["final"]["largest"] for a in int8), default=0.0),
        "test_images": report["test_images"],
        "files": {name: bundle.sha256(content) for name, content in contents.items()},
    }
    if order.place is not None:
        manifest["target"] = {
            "name": order.place.name,
            "hardware": order.place.target.hardware,
            "os": order.place.system,
            "python": order.place.python,
        }
    contents[bundle.MANIFEST] = bundle.seal(manifest)
    with run.workspace() as work:
        (work / target).write_bytes(archive(stem, contents))
        run.commit({target: work / target}, config, [REPORT, *models, *folders])
    return True


def _golden(run: RunFolder, order: Order) -> tuple[dict[str, Any], bytes]:
    """By precision the contract, and golden.npz: images, and what the program makes of them."""
    contracts, golden = {}, {}
    images = dataset_of(run).test.images[:GOLDEN_IMAGES]
    for precision in order.precisions:
        module = program.load(run.need(run.artefact(precision, "pt2")))
        contract = contract_of(run, module, precision)
        contracts[precision] = json.loads(contract.to_json())
        scores = program.run(module, images)[0].numpy()
        golden[precision] = steps(scores, contract.output) if contract.output else scores
    return contracts, _npz(images=images.numpy(), **golden)


def _folders(run: RunFolder, order: Order) -> list[str]:
    """The folders of C: of all precisions where they are compiled, else the smallest one's, if it
    was verified.
    """
    if "c" not in order.formats:
        return []
    if order.is_native:
        return [run.artefact(precision, "c") for precision in order.precisions]
    skipped = json.loads(run.need(REPORT).read_bytes())["skipped"]
    return [] if "c" in skipped else [run.artefact(order.first, "c")]


def _requirements(order: Order) -> dict[str, bytes]:
    """The files of requirements for pip. ARMv7 has no wheels of NumPy: there it is the system's."""
    files = {}
    for runtime in order.runtimes:
        text = (Path(deploy.__file__).parent / "requirements" / f"{runtime}.txt").read_text()
        if order.place is not None and order.place.target.wheels == "armv7l":
            text = "".join(re.findall(rf"^{runtime}==.*\n(?: .*\n)*", text, re.MULTILINE))
        files[f"requirements-{runtime}.txt"] = text.encode()
    return files


def _verdict(model: str, verified: list[dict[str, Any]]) -> dict[str, Any]:
    """What the manifest says of a file: the worst of the runtimes that it was verified with."""
    results = [artefact for artefact in verified if artefact["file"] == model]
    return {
        "precision": results[0]["precision"],
        "accuracy": min(result["final"]["accuracy"] for result in results),
        "verified_with": ", ".join(result["runtime"] for result in results),
        "equal_to_program": min(result["final"]["equal_part"] for result in results),
    }


def _refuse_unverified(run: RunFolder, report: dict[str, Any], models: list[str]) -> None:
    mend = f"run 'pipeline verify --run {run.name}'"
    for model in models:
        results = [a for a in report["artefacts"] if a["file"] == model and a["shipped"]]
        if not results:
            raise Missing(f"{model} has not been verified", mend)
        precision = results[0]["precision"]
        also = [run.artefact(precision, kind) for kind in ("pt2", "onnx")]  # the reference, too
        judged = [a for a in report["artefacts"] if a["file"] in (model, *also)]
        if not all(result["passed"] for result in judged):
            raise VerificationFailed(f"{model} did not pass verification", f"see {REPORT}; {mend}")


def _npz(**arrays: Any) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def _readme(run: RunFolder, order: Order, folders: Sequence[str]) -> bytes:
    """The folder's own README: of a bundle for a target, or of one for any 64-bit Linux."""
    known = {
        "model": run.model,
        "labels": ", ".join(run.training["labels"]),
        "precision": order.first,
    }
    requirements = [f"requirements-{name}.txt" for name in order.runtimes]
    if order.place is not None and order.is_native:
        python = NATIVE_PYTHON if order.place.has_python else ""
        known |= {"hardware": order.place.target.hardware, "prefix": install_name(run)}
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


def install_name(run: RunFolder) -> str:
    """The name of the folder that install.sh makes: letters, digits, dots, dashes."""
    return re.sub(r"[^\w.-]+", "-", run.model, flags=re.ASCII)


def _install(run: RunFolder, place: Place, order: Order) -> bytes:
    names = " ".join(order.runtimes)
    known = {"name": install_name(run), "hardware": place.target.hardware, "requirements": names}
    known["runtimes"] = f"one of: {names}" if names else "(none: the bundle has C alone)"
    return _filled(INSTALL, known)


def zipapp(folder: Path) -> bytes:
    """The runner as one executable file: the `deploy` package's Python, zipped, after a #! line."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as app:
        entries = {
            f"deploy/{path.relative_to(folder).as_posix()}": path.read_bytes()
            for path in folder.rglob("*.py")
        }
        entries["__main__.py"] = (
            b"import sys\n\nfrom deploy.runner.__main__ import main\n\nsys.exit(main())\n"
        )
        for name in sorted(entries):
            info = zipfile.ZipInfo(name, EPOCH)
            info.compress_type = zipfile.ZIP_DEFLATED
            app.writestr(info, entries[name])
    return b"#!/usr/bin/env python3\n" + buffer.getvalue()


def archive(folder: str, contents: dict[str, bytes]) -> bytes:
    """A .tar.gz of the contents below `folder`, in order of name, without times or owners."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for name in sorted(contents):
            info = tarfile.TarInfo(f"{folder}/{name}")
            info.size = len(contents[name])
            info.mode = 0o755 if name in EXECUTABLES else 0o644
            tar.addfile(info, io.BytesIO(contents[name]))
    return GZIP_HEADER + gzip.compress(buffer.getvalue(), mtime=0)[len(GZIP_HEADER) :]


def check_archive(path: Path) -> dict[str, Any]:
    """Check a bundle archive without unpacking it, and return its manifest.

    Raises Missing or BadInput naming the file that is wrong.
    """
    try:
        packed = path.read_bytes()
    except OSError as error:
        raise Missing(f"{path}: cannot be read ({error.strerror})") from error
    if not packed:
        raise BadInput(f"{path}: the file is empty", "copy the bundle again")
    contents: dict[str, bytes] = {}
    try:
        if not packed.startswith(GZIP_HEADER):
            raise ValueError("its first bytes are not a bundle's")
        with tarfile.open(fileobj=io.BytesIO(gzip.decompress(packed)), mode="r:") as tar:
            for member in tar.getmembers():
                content = tar.extractfile(member)
                if content is not None:
                    contents[member.name.partition("/")[2]] = content.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error, ValueError) as error:
        raise BadInput(f"{path}: not a bundle ({error})", "copy the bundle again") from error
    return bundle.check(contents.__getitem__, set(contents), str(path))
