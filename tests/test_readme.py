"""README and docs are a promise: their shell commands are run here, in order, as they stand."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import pipeline
from PIL import Image

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "README.md").read_text()
PAGES = sorted((ROOT / "docs").glob("*.md"))


def blocks(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


def prepare_what_the_reader_has(folder: Path) -> None:
    """A network from the README, photos for it, and a picture of a three."""
    (folder / "mynet.py").write_text(blocks("python")[0])
    random = np.random.default_rng(0)
    for number, label in enumerate(("cat", "dog")):
        (folder / "photos" / label).mkdir(parents=True)
        for i in range(8):
            photo = random.integers(0, 128, (40, 60, 3), dtype=np.uint8) + 100 * number
            Image.fromarray(photo.astype(np.uint8)).save(folder / "photos" / label / f"{i}.png")
    three = np.full((64, 48), 255, np.uint8)
    three[8:12, 12:36] = three[30:34, 12:36] = three[52:56, 12:36] = three[8:56, 32:36] = 0
    Image.fromarray(three).save(folder / "three.png")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_every_command_of_readme_and_docs_works(tmp_path: Path) -> None:
    prepare_what_the_reader_has(tmp_path)
    make, *rest = blocks("sh")
    for line in make.splitlines():  # make itself is what runs this test
        command = line.split("#")[0].split()
        assert subprocess.run([*command, "--dry-run"], cwd=ROOT, check=False).returncode == 0
    binaries = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": binaries}
    environment.pop("PIPELINE_RUNS_DIR", None)
    # A page's reader begins where README's began, with the run that was made there.
    pages = ["".join(rest), *("".join(blocks("sh", page.read_text())) for page in PAGES)]
    script = "set -eux\n" + "".join(f"(\n{commands})\n" for commands in pages if commands)
    done = subprocess.run(
        ["bash", "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "three.png: " in done.stdout
    assert (tmp_path / "runs" / "mine" / "my-net-bundle.tar.gz").is_file()


def test_the_pages_become_a_site_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("material", reason="no mkdocs-material: install the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for page in PAGES:
        html = tmp_path / (page.stem if page.stem != "index" else "") / "index.html"
        text = html.read_text()
        assert not re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', text)


def test_what_readme_points_to_is_there() -> None:
    links = re.findall(r"\]\(([^)#]+)\)", TEXT)
    assert len(links) >= 4
    assert [link for link in links if "://" not in link and not (ROOT / link).exists()] == []


def test_every_command_is_in_the_readme_and_its_help_has_an_example(tmp_path: Path) -> None:
    text = pipeline("--help", runs=tmp_path).stdout
    commands = re.findall(r"^  ([a-z]+)  ", text.partition("Commands:")[2], flags=re.MULTILINE)
    assert len(commands) >= 7
    for command in commands:
        assert f"pipeline {command}" in TEXT
        assert "Example" in pipeline(command, "--help", runs=tmp_path).stdout
