"""`runner serve` in a process of its own, on a free port."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
# A server whose patience a test can wait for, and which takes some time for a picture.
CHANGED = """
import sys
import time
from deploy.runner.__main__ import main
from deploy.runner.serve import server
from deploy.runner.serve.classifier import Classifier
patience, seconds = map(float, sys.argv[1:3])
server.SILENCE = server.PATIENCE = patience
answer = Classifier._answer
Classifier._answer = lambda *given: (time.sleep(seconds), answer(*given))[1]
sys.exit(main(sys.argv[3:]))
"""


@dataclass
class Served:
    process: subprocess.Popen
    url: str

    @property
    def port(self):
        return int(self.url.rstrip("/").rpartition(":")[2])

    def connect(self):
        return socket.create_connection(("127.0.0.1", self.port), timeout=60)

    def end(self):
        """The exit code after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


@contextmanager
def serving(
    bundle: Path, *options: str, changed: tuple[float, float] | None = None, **environment
) -> Iterator[Served]:
    """The bundle's own runner.pyz; where `changed`, which are seconds of patience and for one
    picture, the runner of this checkout.
    """
    program = ["-I", str(bundle / "runner.pyz")]
    if changed:
        program = ["-c", CHANGED, *map(str, changed)]
    where = ["--bundle", str(bundle), "--port", "0", "--json"]
    process = subprocess.Popen(
        [sys.executable, *program, "serve", *where, *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=ROOT,
        env=os.environ | environment,
    )
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        yield Served(process, json.loads(line)["url"])
    finally:
        process.kill()
        process.communicate()
