"""What a .deb has besides the bundle: what dpkg reads, and what lies where Debian wants it.

Debian's policy, chapters 5 (control fields), 6 (scripts), 12 (documentation); lintian passes it,
with the overrides that say why.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from string import Template

from deploy.runner.bundle import RUNNER, sha256

from .. import __version__
from ..errors import UsageError
from ..run_folder import RunFolder
from .archive import DEBIAN, Link, zipped
from .native import CLASSIFY
from .order import Order, package_name
from .service import service
from .targets import ARCHITECTURES, Place

MAINTAINER = ("DEBFULLNAME", "DEBEMAIL")
NOBODY = "pi-pipeline", "nobody@pi-pipeline.invalid"
DATE = "Tue, 01 Jan 1980 00:00:00 +0000"  # that of the files: the changelog has one entry
CONTROL = """\
Package: $name
Version: $version
Architecture: $architecture
Maintainer: $maintainer
Installed-Size: $kilobytes
${depends}Section: science
Priority: optional
Description: picture classifier $model
$answers
 .
 It is for $hardware, made by pipeline $pipeline.
 Its program needs nothing; the models are in /opt/$name.
"""
# $$DPKG_ROOT is set where dpkg installs into another root without changing into it.
POSTINST = """\
#!/bin/sh
set -e
if [ "$$1" = configure ]; then
    "$$DPKG_ROOT/opt/$name/classify" --selftest >/dev/null 2>&1 || {
        echo "error: $name does not compute here what was trained: it is for $hardware, and" \\
            "this is a $$(uname -m); make the package with another --target" >&2
        exit 1
    }
    # Not started by itself: systemctl enable --now $name
    deb-systemd-helper update-state $name.service >/dev/null || true
fi
"""
PRERM = """\
#!/bin/sh
set -e
if [ "$$1" = remove ] && [ -z "$$DPKG_ROOT" ] && [ -d /run/systemd/system ]; then
    deb-systemd-invoke stop $name.service >/dev/null || true
fi
"""
POSTRM = """\
#!/bin/sh
set -e
if [ "$$1" = purge ] && command -v deb-systemd-helper >/dev/null; then
    deb-systemd-helper purge $name.service >/dev/null || true
fi
"""
OVERRIDES = """\
# A program of its owner's, not of Debian's: the hierarchy standard has /opt for it.
$name: dir-or-file-in-opt [opt/*]
# One file that runs whatever the system's C library is, on any release.
$name: statically-linked-binary [opt/$name/classify]
"""
FREESTANDING = """\
# The generated C of this model calls nothing of the C library.
$name: library-not-linked-against-libc [opt/$name/$library]
"""
MAN = """\
.TH $upper 1
.SH NAME
$name \\- picture classifier $model
.SH SYNOPSIS
.B $name
[\\fIoption\\fR]... [\\fIfile\\fR]...
.SH DESCRIPTION
It answers with one of: $labels.
.B $name \\-\\-help
has the options,
.I /opt/$name/README.md
the rest.
"""


def maintainer() -> str:
    """Who answers for a package, as Debian's own tools take it from the environment. Raises
    UsageError.
    """
    defaults = zip(MAINTAINER, NOBODY, strict=True)
    person, address = (os.environ.get(variable) or other for variable, other in defaults)
    if not re.fullmatch(r"[^<>\n]+", person) or not re.fullmatch(r"[^\s<>]+@[^\s<>]+", address):
        raise UsageError(
            f"{' and '.join(MAINTAINER)}: {person} <{address}> is no maintainer",
            "give a name and an address, or neither",
        )
    return f"{person} <{address}>"


def serial(run: RunFolder, names: Sequence[str]) -> str:
    """When the last of what is packed was made, in digits: dpkg takes the higher version for the
    newer one, and a hash says nothing of that.
    """
    return re.sub(r"\D", "", max(run.entry(name)["made"] for name in names))


def outside(
    run: RunFolder, order: Order, place: Place, contents: Mapping[str, bytes], number: str
) -> dict[str, bytes | Link]:
    """By path what is outside of /opt; what dpkg reads is below DEBIAN/. `contents` are all files
    of the bundle but its manifest and sums, `number` is its `serial`.
    """
    name = package_name(run)
    digest = sha256("".join(sha256(contents[key]) for key in sorted(contents)).encode())
    labels = ", ".join(" ".join(label.split()) for label in run.training["labels"])
    known = {
        "name": name,
        "upper": name.upper(),
        "version": f"{__version__}+{number}.{digest[:8]}",
        "architecture": ARCHITECTURES[place.target.wheels],
        "maintainer": maintainer(),
        "kilobytes": str(-(-sum(len(content) for content in contents.values()) // 1024)),
        "depends": _depends(contents),
        "model": run.model,
        "labels": labels,
        "answers": textwrap.fill(
            f"It answers with one of: {labels}.",
            width=76,
            initial_indent=" ",
            subsequent_indent=" ",
        ),
        "hardware": place.target.hardware,
        "pipeline": __version__,
    }
    files = {
        f"{DEBIAN}control": CONTROL,
        f"{DEBIAN}postinst": POSTINST,
        f"{DEBIAN}prerm": PRERM,
        f"{DEBIAN}postrm": POSTRM,
        f"usr/share/lintian/overrides/{name}": OVERRIDES,
    }
    for library in sorted(name for name in contents if name.endswith(".so")):
        if b"libc.so" not in contents[library]:
            override = Template(FREESTANDING).safe_substitute(library=library)
            files[f"usr/share/lintian/overrides/{name}"] += override
    found: dict[str, bytes | Link] = {
        path: Template(text).substitute(known).encode() for path, text in files.items()
    }
    changes = f"{name} ({known['version']}) unstable; urgency=medium\n\n"
    changes += f"  * Made by pipeline {__version__}.\n\n -- {known['maintainer']}  {DATE}\n"
    found[f"usr/share/doc/{name}/changelog.gz"] = zipped(changes.encode())
    found[f"usr/share/doc/{name}/copyright"] = contents["NOTICES"] + (
        b"\nOn Debian systems the Apache License 2.0 is in /usr/share/common-licenses/Apache-2.0.\n"
    )
    found[f"usr/share/man/man1/{name}.1.gz"] = zipped(Template(MAN).substitute(known).encode())
    found[f"usr/bin/{name}"] = Link(f"/opt/{name}/{CLASSIFY}")
    found[f"usr/lib/systemd/system/{name}.service"] = service(
        run.model, f"/opt/{name}", of_user=False
    )
    return found


def _depends(contents: Mapping[str, bytes]) -> str:
    """The fields of what must be there: the C library that the libraries ask for; to recommend is
    what the runner in Python needs, since `classify` does without.
    """
    libraries = (content for name, content in contents.items() if name.endswith(".so"))
    wanted = [int(n) for content in libraries for n in re.findall(rb"GLIBC_2\.(\d+)", content)]
    lines = f"Depends: libc6 (>= 2.{max(wanted)})\n" if wanted else ""
    if any(PurePosixPath(name).name == RUNNER for name in contents):
        lines += "Recommends: python3 (>= 3.11), python3-numpy\nSuggests: python3-pil\n"
    return lines
