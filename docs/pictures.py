"""README's pictures: what a browser shows of a run's report, and of the page that a bundle serves.

    python docs/pictures.py [RUN_FOLDER]

The page's is taken by the test that draws on it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

ROOT = Path(__file__).parents[1]
PLACE = ROOT / "docs" / "pictures"
WIDTH, HEIGHT = 1000, 760  # pixels of the window
COLOURS = 64  # enough for a page, and a quarter of the bytes
DRAWN = "test_what_is_drawn_is_answered[desktop]"


def main(report: Path) -> None:
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        sys.exit("there is no Chromium: apt install chromium")
    if not report.is_file():
        sys.exit(f"{report}: not there; run 'pipeline report'")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "report.png"
        window = ["--hide-scrollbars", f"--window-size={WIDTH},{HEIGHT}"]
        own = ["--headless=new", "--no-sandbox", f"--user-data-dir={folder}/profile"]
        command = [browser, *own, *window, f"--screenshot={shot}", report.resolve().as_uri()]
        subprocess.run(command, check=True, capture_output=True)
        keep(shot, "report.png")
        test = ["-m", "pytest", "-q", "-m", "browser", f"tests/test_browser.py::{DRAWN}"]
        environment = os.environ | {"SCREENSHOTS": folder}
        subprocess.run([sys.executable, *test], cwd=ROOT, env=environment, check=True)
        keep(Path(folder) / "serve-desktop-3.png", "page.png")


def keep(shot: Path, name: str) -> None:
    with Image.open(shot) as image:
        whole = image.convert("RGB").crop((0, 0, image.width, min(image.height, HEIGHT + 140)))
        whole.quantize(COLOURS).save(PLACE / name, optimize=True)
    print(f"docs/pictures/{name}  {(PLACE / name).stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/lenet5-digits") / "report.html")
