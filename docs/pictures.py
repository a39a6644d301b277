"""The pictures of README: what a browser shows of a run's report. Usage: pictures.py RUN_FOLDER"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

WIDTH, HEIGHT = 1000, 760  # pixels of the window
COLOURS = 64  # enough for a page, and a quarter of the bytes
PLACE = Path(__file__).parent / "pictures"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")


def main(report: Path) -> None:
    browser = next((name for name in BROWSERS if shutil.which(name)), None)
    if browser is None:
        sys.exit("no Chromium here; sudo apt install chromium")
    if not report.is_file():
        sys.exit(f"{report}: not there; run 'pipeline report'")
    with tempfile.TemporaryDirectory() as folder:
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [
                browser,
                "--headless=new",
                "--no-sandbox",
                "--hide-scrollbars",
                f"--user-data-dir={folder}/profile",
                f"--window-size={WIDTH},{HEIGHT}",
                f"--screenshot={shot}",
                report.resolve().as_uri(),
            ],
            check=True,
            capture_output=True,
        )
        with Image.open(shot) as image:
            image.convert("RGB").quantize(COLOURS).save(PLACE / "report.png", optimize=True)
    print(f"{PLACE / 'report.png'}  {(PLACE / 'report.png').stat().st_size:,} bytes")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/lenet5-digits") / "report.html")
