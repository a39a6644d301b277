"""Package: what a person copies to the device, one archive, the same bytes every time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import deploy
from deploy.runner import bundle
from deploy.runner.contract import default_precision

from .. import __version__
from ..data import dataset_of
from ..errors import Missing
from ..files import sha256_files
from ..run_folder import RunFolder
from ..verify import REPORT
from . import debian
from .archive import (
    INSTALL,
    archive,
    check_archive,
    debian_package,
    digests,
)
from .contents import (
    example_picture,
    golden_vectors,
    installer,
    readme,
    requirements_of,
    zipapp,
)
from .licences import (
    linked_into,
    notices,
    our_licence,
    packed_with_the_runner,
    wheels_of,
)
from .manifest import manifest_of, refuse_unverified
from .native import CLASSIFY, library_name, native_files, try_out
from .order import PACKED, Order, bundle_name, bundle_stem, install_name, package_name
from .sbom import SBOM, sbom
from .service import SERVE_UNIT, service, serving
from .signature import check_signed, kept_signature, public_hex, signing_key
from .targets import refuse_newer
from .toolchain import version_of
from .wheelhouse import wheelhouse

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = [
    "Order",
    "archive",
    "bundle_name",
    "bundle_stem",
    "check_archive",
    "check_signed",
    "install_name",
    "package_run",
    "signing_key",
    "zipapp",
]


def package_run(
    run: RunFolder,
    order: Order | None = None,
    key: Ed25519PrivateKey | None = None,
    on_note: Callable[[str], None] = lambda _: None,
) -> bool:
    """Write a bundle of the run, signed where there is a key. Returns whether it was made now (else
    it was current).

    Only what `verify` has passed is packed: raises VerificationFailed otherwise, UsageError,
    Missing, or BadInput for artefacts out of date. C that is compiled for a target is tried here if
    an emulator is here; sources go along unless no compiler was there to verify them.
    """
    order = (order or Order()).of_run(run)
    place = order.place
    target = bundle_name(run, place, order.kind)
    models = [
        run.artefact(precision, kind) for precision, kind in order.artefacts if kind in PACKED
    ]
    folders = _folders(run, order)
    order = replace(order, compiler=order.cross_compiler())
    config = _config(order, models, folders, key)
    if order.kind == "deb":
        config["serial"] = debian.serial(run, [*models, *folders])
    if key is None:
        config |= kept_signature(run, target, config, on_note)
    report = run.read_json(REPORT)
    refuse_unverified(run, order, report, [*models, *folders])
    if not run.wants(target, config=config):
        return False
    contents, shipped = _models(run, order, models, folders, on_note)
    dataset = dataset_of(run)
    contracts, golden, clearest = golden_vectors(run, order, dataset)
    name, picture = example_picture(dataset, clearest)
    label = dataset.labels[int(dataset.test.labels[clearest])]
    contents[name] = picture
    if order.has_python:
        contents |= {"golden.npz": golden, bundle.RUNNER: zipapp(Path(deploy.__file__).parent)}
    contents["README.md"] = readme(run, order, folders, name, label)
    _accompany(run, order, contents, shipped)
    outside = {}
    if place and order.kind == "deb":
        outside = debian.outside(run, order, place, contents, config["serial"])
    manifest = manifest_of(run, order, report, shipped, contracts, config.get("compiler"))
    manifest["files"] = {name: bundle.sha256(content) for name, content in contents.items()}
    if outside:
        manifest["package"] = digests(outside)
    sealed = bundle.seal(manifest)
    contents[bundle.MANIFEST] = sealed
    contents[bundle.SUMS] = bundle.sums(manifest["files"], sealed)
    if key is not None:
        contents[bundle.SIGNATURE] = key.sign(contents[bundle.SUMS])
    with run.workspace() as work:
        (work / target).write_bytes(
            debian_package(package_name(run), contents, outside)
            if outside
            else archive(target.removesuffix(f".{order.kind}"), contents)
        )
        run.commit({target: work / target}, config, [REPORT, *models, *folders])
    return True


def _config(
    order: Order, models: list[str], folders: list[str], key: Ed25519PrivateKey | None
) -> dict[str, Any]:
    """What decides the bytes, besides the run's own files."""
    config: dict[str, Any] = {"models": models, "pipeline": __version__, "sources": _sources()}
    if folders:
        config["c"] = folders
    if order.has_python:
        config["waitress"] = packed_with_the_runner().version
    if order.place:
        config |= {"target": order.place.name, "os": order.place.system, "wheels": order.wheels}
        config["python"] = order.place.python
    if order.place and order.is_native:
        config["compiler"] = version_of(order.place.target.board, order.compiler)
    if order.kind == "deb":
        config["maintainer"] = debian.maintainer()
    if key is not None:
        config["signed_by"] = public_hex(key)
    return config


def _sources() -> str:
    """SHA-256 of what makes bundles, and of what goes into them from here."""
    digests = []
    for folder in (Path(deploy.__file__).parent, Path(__file__).parent):
        files = (p for p in folder.rglob("*") if p.is_file() and p.suffix != ".pyc")
        names = [path.relative_to(folder).as_posix() for path in files]
        digests.append(sha256_files(folder, names))
    return bundle.sha256("".join(digests).encode())


def _models(
    run: RunFolder,
    order: Order,
    models: list[str],
    folders: list[str],
    on_note: Callable[[str], None],
) -> tuple[dict[str, bytes], dict[str, str]]:
    """What computes: (contents by name, of each file that ships what was verified)."""
    contents = {model: run.need(model).read_bytes() for model in models}
    for model in models:
        if model.endswith(".onnx"):
            refuse_newer(model, contents[model])
    shipped = {model: model for model in models}
    if order.place is not None and order.is_native:
        on_note(f"compiling C for {order.place.name}")
        native = native_files(run, order.place, order.in_c, order.compiler)
        try:
            try_out(order.place, native[CLASSIFY])
        except Missing as error:
            on_note(f"note: packed without being tried: {error}")
        contents |= native
        shipped |= {library_name(run, p): run.artefact(p, "c") for p in order.in_c}
        return contents, shipped
    for name in folders:
        folder = run.need(name)
        for file in run.entry(name)["files"]:
            contents[f"c/{name}/{file}"] = (folder / file).read_bytes()
    return contents, shipped


def _accompany(
    run: RunFolder,
    order: Order,
    contents: dict[str, bytes],
    shipped: dict[str, str],
) -> None:
    """Add to the contents what installs them, and what tells of it all."""
    place = order.place
    requirements: dict[str, bytes] = {}
    if order.has_python:
        requirements = requirements_of(order)
        contents |= requirements
    if order.wheels and place is not None:
        found = wheelhouse(requirements, place)
        contents |= {f"wheels/{name}": wheel for name, wheel in found.items()}
    contents["LICENSE"] = our_licence()
    linked = [packed_with_the_runner()] if order.has_python else []
    if place is not None and order.is_native:
        linked += linked_into(place, order.compiler)
        contents[INSTALL] = installer(run, place, order)
        folder = f"%h/.local/share/{install_name(run)}/current/bundle"
        unit = service(run.model, folder, of_user=True)
        contents[f"{package_name(run)}.service"] = unit
        if requirements:
            contents[SERVE_UNIT] = serving(run.model, package_name(run), folder)
    wheels = wheels_of(requirements.values())
    contents["NOTICES"] = notices(linked, wheels)
    name = bundle_stem(run, place)
    contents[SBOM] = sbom(name, shipped, contents, linked, wheels)


def _folders(run: RunFolder, order: Order) -> list[str]:
    """The folders of C: of all precisions where they are compiled, else the default one's, if it
    was verified.
    """
    if order.is_native:
        return [run.artefact(precision, "c") for precision in order.in_c]
    if not order.in_c or "c" in run.read_json(REPORT)["skipped"]:
        return []
    return [run.artefact(default_precision(order.in_c), "c")]
