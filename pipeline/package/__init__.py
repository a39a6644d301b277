"""Package: what a person copies to the device, one archive, the same bytes every time."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
import zipfile
import zlib
from collections.abc import Sequence
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

PACKED = ("onnx", "tflite")  # what the runner runs as it is; C is compiled on the device
GOLDEN_IMAGES = 32
RUNNER = "runner.pyz"
GZIP_HEADER = bytes.fromhex("1f8b08000000000002ff")  # no name, no time, no system
C_SOURCES = """
`make -C c/$folder` makes `classify` of the $precision model, which needs no Python.
"""
EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's earliest date


def bundle_name(run: RunFolder) -> str:
    """The archive's file name in the run folder."""
    return f"{run.model}-bundle.tar.gz"


def package_run(
    run: RunFolder, formats: Sequence[str] = PACKED, precisions: Sequence[str] = PRECISIONS
) -> bool:
    """Write the run's bundle. Returns whether it was made now (else it was current).

    With "c" among the formats the generated sources of the smallest precision go along, for the
    device to compile; unless no compiler was there to verify them. Only what `verify` has passed
    is packed: raises VerificationFailed otherwise, UsageError, Missing, or BadInput for artefacts
    out of date.
    """
    runnable = [name for name in formats if name in PACKED]
    if not runnable:
        raise UsageError("a bundle of C alone is not known", f"add {' or '.join(PACKED)}")
    models = [run.artefact(precision, name) for precision in precisions for name in runnable]
    sources = _sources(run, precisions) if "c" in formats else []
    config = {"models": models, "pipeline": __version__} | ({"c": sources} if sources else {})
    target = bundle_name(run)
    if run.is_current(target, config):
        return False
    report = json.loads(run.need(REPORT).read_bytes())
    _refuse_unverified(run, report, [*models, *sources])
    contents = {model: run.need(model).read_bytes() for model in models}
    for name in sources:
        folder = run.need(name)
        for file in run.entry(name)["files"]:
            contents[f"c/{name}/{file}"] = (folder / file).read_bytes()
    contracts, golden = {}, {}
    images = dataset_of(run).test.images[:GOLDEN_IMAGES]
    for precision in precisions:
        module = program.load(run.need(run.artefact(precision, "pt2")))
        contract = contract_of(run, module, precision)
        contracts[precision] = json.loads(contract.to_json())
        scores = program.run(module, images)[0].numpy()
        golden[precision] = steps(scores, contract.output) if contract.output else scores
    verified = [a for a in report["artefacts"] if a["file"] in models and a["shipped"]]
    int8 = [a for a in verified if a["precision"] == "int8"]
    contents |= {
        "golden.npz": _npz(images=images.numpy(), **golden),
        RUNNER: zipapp(Path(deploy.__file__).parent),
        "README.md": _readme(run, runnable, precisions, sources),
        "LICENSE": (distribution("pi-pipeline").read_text("licenses/LICENSE") or "").encode(),
    }
    for runtime in _runtimes(runnable):
        text = (Path(deploy.__file__).parent / "requirements" / f"{runtime}.txt").read_bytes()
        contents[f"requirements-{runtime}.txt"] = text
    manifest = {
        "schema": bundle.SCHEMA,
        "run": run.name,
        "pipeline_version": __version__,
        "contracts": contracts,
        "models": {model: _verdict(model, verified) for model in models},
        # On the device a tie may fall otherwise than it did here: one step more than was found.
        "int8_steps": 1 + max((a["final"]["largest"] for a in int8), default=0.0),
        "test_images": report["test_images"],
        "files": {name: bundle.sha256(content) for name, content in contents.items()},
    }
    contents[bundle.MANIFEST] = bundle.seal(manifest)
    with run.workspace() as work:
        (work / target).write_bytes(archive(f"{run.model}-bundle", contents))
        run.commit({target: work / target}, config, [REPORT, *models, *sources])
    return True


def _sources(run: RunFolder, precisions: Sequence[str]) -> list[str]:
    """The folder of C that was verified, or should have been."""
    skipped = json.loads(run.need(REPORT).read_bytes())["skipped"]
    return [] if "c" in skipped else [run.artefact(_smallest(precisions), "c")]


def _smallest(precisions: Sequence[str]) -> str:
    return "int8" if "int8" in precisions else precisions[0]


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


def _runtimes(formats: Sequence[str]) -> list[str]:
    """The runtimes that can run one of these formats, the recommended one first."""
    return [name for name, backend in BACKENDS.items() if backend.SUFFIX[1:] in formats]


def _readme(
    run: RunFolder, formats: Sequence[str], precisions: Sequence[str], sources: Sequence[str]
) -> bytes:
    text = (resources("pipeline.package") / "bundle-readme.md").read_text()
    labels = ", ".join(run.training["labels"])
    precision = _smallest(precisions)
    first, *others = (f"requirements-{name}.txt" for name in _runtimes(formats))
    return (
        Template(text)
        .substitute(
            model=run.model,
            labels=labels,
            precision=precision,
            requirements=first,
            others=", ".join(f"`{name}`" for name in others) or "(none in this bundle)",
            c=Template(C_SOURCES).substitute(folder=sources[0], precision=precision)
            if sources
            else "",
        )
        .encode()
    )


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
            info.mode = 0o755 if name == RUNNER else 0o644
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
