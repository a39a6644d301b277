"""One picture from the board's camera."""

from __future__ import annotations

import re
import shlex
import sys

import numpy as np

from .errors import Missing, first_line
from .images import Pixels

NAME = "camera"
SIZE = (640, 480)  # width, height: far more than any network here looks at


def mend(said: str) -> str:
    """What mends an import of picamera2 that ended with an error, "ValueError: ..."."""
    if re.match("ImportError|ModuleNotFoundError", said) and "numpy" not in said:
        return "run 'sudo apt install python3-picamera2'"
    # What it imports was compiled for the system's NumPy, which that of an environment hides.
    runner = shlex.quote(sys.argv[0])
    return f"run '/usr/bin/python3 {runner} predict --camera --runtime c', by the system's NumPy"


def capture() -> Pixels:
    """A picture as uint8 480 x 640 x 3, in red, green, blue. Raises Missing without a picamera2
    that works or without a camera that answers.
    """
    try:
        from picamera2 import Picamera2
    except Exception as error:  # its extensions raise more than ImportError
        said = f"{type(error).__name__}: {first_line(error)}"
        raise Missing(f"there is no picamera2 that works here ({said})", mend(said)) from error
    try:
        with Picamera2() as camera:
            # libcamera names a format from the highest byte down: BGR888 lies as R, G, B.
            settings = {"format": "BGR888", "size": SIZE}
            camera.configure(camera.create_still_configuration(settings))
            camera.start()
            return np.ascontiguousarray(camera.capture_array(), dtype=np.uint8)
    except (RuntimeError, IndexError, OSError) as error:  # what picamera2 raises without a camera
        raise Missing(
            f"the camera gives no picture ({first_line(error)})",
            "see whether 'rpicam-hello --list-cameras' finds one",
        ) from error
