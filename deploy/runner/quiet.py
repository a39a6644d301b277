"""Silence for libraries that chatter on the terminal from C++ as well as from Python."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what is written to stdout and stderr inside the block; show it if the block fails
    and PIPELINE_DEBUG is set.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    saved = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as kept:
        os.dup2(kept.fileno(), 1)
        os.dup2(kept.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for stream, descriptor in enumerate(saved, start=1):
                os.dup2(descriptor, stream)
                os.close(descriptor)
            if failed and os.environ.get("PIPELINE_DEBUG"):
                kept.seek(0)
                os.write(2, kept.read())
