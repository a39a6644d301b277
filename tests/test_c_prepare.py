"""Pictures in C become the same bytes as in Python."""

from __future__ import annotations

import ctypes
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import deploy
from deploy.runner.images import decode, prepare
from pipeline.verify.compiler import compiler

SOURCES = Path(deploy.__file__).parent / "c"
KINDS = {"glyph": 1, "picture": 2}  # enum preparation

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C compiler")


class Picture(ctypes.Structure):
    """`struct picture` of images.h."""

    _fields_ = (
        ("height", ctypes.c_int),
        ("width", ctypes.c_int),
        ("channels", ctypes.c_int),
        ("pixels", ctypes.c_void_p),
    )


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """images.c and prepare.c as they ship."""
    path = tmp_path_factory.mktemp("prepare") / "prepare.so"
    command = compiler()
    assert command is not None
    flags = ["-std=c99", "-O2", "-shared", "-fPIC", "-Wall", "-Wextra", "-Wconversion", "-Werror"]
    sources = [str(SOURCES / name) for name in ("images.c", "prepare.c")]
    subprocess.run([*command, *flags, *sources, "-o", str(path)], check=True)
    loaded = ctypes.CDLL(str(path))
    loaded.picture_decode.restype = ctypes.c_char_p
    return loaded


def prepared(library: Any, image: np.ndarray, shape: tuple[int, int, int], kind: str) -> np.ndarray:
    image = np.ascontiguousarray(image)
    picture = Picture(*image.shape, image.ctypes.data)
    out = np.zeros(shape, np.uint8)
    place = ctypes.c_void_p(out.ctypes.data)
    assert library.picture_prepare(ctypes.byref(picture), KINDS[kind], *shape, place) == 0
    return out


@st.composite
def pictures(draw: st.DrawFn) -> np.ndarray:
    """Noise, strokes on paper, or one grey, of any small size."""
    height, width = draw(st.integers(1, 60)), draw(st.integers(1, 60))
    channels = draw(st.sampled_from((1, 3)))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(("noise", "strokes", "flat")))
    shape = (height, width, channels)
    if kind == "noise":
        return random.integers(0, 256, shape, dtype=np.uint8)
    paper, ink = draw(st.integers(0, 255)), draw(st.integers(0, 255))
    image = np.full(shape, paper, np.uint8)
    if kind == "strokes":
        for _ in range(draw(st.integers(1, 4))):
            top, left = random.integers(0, height), random.integers(0, width)
            image[top : top + random.integers(1, 20), left : left + random.integers(1, 9)] = ink
        noise = random.integers(-3, 4, shape)
        image = np.clip(image + noise, 0, 255).astype(np.uint8)
    return image


@settings(max_examples=300)
@given(
    image=pictures(),
    shape=st.tuples(st.sampled_from((1, 3)), st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(sorted(KINDS)),
)
def test_any_picture_becomes_the_same_bytes(
    library: Any, image: np.ndarray, shape: tuple[int, int, int], kind: str
) -> None:
    if kind == "glyph" and min(shape[1:]) < 2:
        shape = (shape[0], shape[1] + 1, shape[2] + 1)
    expected = prepare(image, shape, kind)
    np.testing.assert_array_equal(prepared(library, image, shape, kind), expected)


@pytest.mark.parametrize("size", [(1, 3000), (3000, 1), (700, 900)])
def test_large_pictures_do(library: Any, size: tuple[int, int]) -> None:
    image = np.random.default_rng(7).integers(0, 256, (*size, 1), dtype=np.uint8)
    for kind in KINDS:
        expected = prepare(image, (1, 28, 28), kind)
        np.testing.assert_array_equal(prepared(library, image, (1, 28, 28), kind), expected)


def decoded(library: Any, content: bytes) -> np.ndarray | str:
    """The picture, or what is wrong with it."""
    picture = Picture()
    wrong = library.picture_decode(content, ctypes.c_size_t(len(content)), ctypes.byref(picture))
    if wrong is not None:
        return str(wrong.decode())
    shape = (picture.height, picture.width, picture.channels)
    kind = ctypes.c_uint8 * int(np.prod(shape))
    array = np.ctypeslib.as_array(kind.from_address(picture.pixels)).reshape(shape).copy()
    free = ctypes.CDLL(None).free
    free.argtypes = (ctypes.c_void_p,)
    free(picture.pixels)
    return array


@pytest.mark.parametrize(
    "content",
    [
        b"P5 3 2 255\n" + bytes(range(0, 240, 40)),
        b"P5\n# a comment\n3\n# another\n2 7\n" + bytes(range(6)),
        b"P6 2 1 255\n" + bytes((1, 2, 3, 250, 251, 252)),
        b"P2 3 1 15\n0 7 15\n",
        b"P3 1 2 255\n1 2 3\n4 5 6 ",
    ],
)
def test_pgm_and_ppm_are_read_as_python_reads_them(library: Any, content: bytes) -> None:
    found = decoded(library, content)
    np.testing.assert_array_equal(found, decode(content, "picture"))
