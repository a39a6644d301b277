"""One picture from the board's camera."""

from __future__ import annotations

import numpy as np

from .errors import Missing, first_line
from .images import Pixels

NAME = "camera"
MEND = "sudo apt install python3-picamera2"
SIZE = (640, 480)  # width, height: far more than any network here looks at


def capture() -> Pixels:
    """A picture as uint8 480 x 640 x 3, in red, green, blue. Raises Missing without picamera2 or
    without a camera that answers.
    """
    try:
        from picamera2 import Picamera2
    except ImportError as error:
        raise Missing(
            f"there is no picamera2 here ({first_line(error)})", f"run '{MEND}'"
        ) from error
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
