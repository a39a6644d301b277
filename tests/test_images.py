"""From a picture file to pixels: every format, every kind of bad file, and the arithmetic."""

import io
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from PIL import Image

from deploy.runner.errors import BadInput, Missing
from deploy.runner.images import decode, glyph, grey, prepare, resize

RNG = np.random.default_rng(20)
COLOUR = RNG.integers(0, 256, (5, 7, 3), np.uint8)
GREY = COLOUR[:, :, :1]
small = st.integers(1, 9)


def npy(array, **options):
    buffer = io.BytesIO()
    np.save(buffer, array, **options)
    return buffer.getvalue()


def npy_with_header(header):
    text = header.encode().ljust(117) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(6)


def encoded(picture, kind, **options):
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def png(array, mode=None):
    picture = Image.fromarray(array[:, :, 0] if array.shape[2] == 1 else array)
    return encoded(picture.convert(mode) if mode else picture, "PNG")


# --- decode: what is read -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(b"P2 3 2 255 1 2 3\n4 5 6", [[[1], [2], [3]], [[4], [5], [6]]], id="P2"),
        pytest.param(b"P5 3 2 255\n\1\2\3\4\5\6", [[[1], [2], [3]], [[4], [5], [6]]], id="P5"),
        pytest.param(b"P3 1 2 255 1 2 3 4 5 6", [[[1, 2, 3]], [[4, 5, 6]]], id="P3"),
        pytest.param(b"P6 1 2 255\n\1\2\3\4\5\6", [[[1, 2, 3]], [[4, 5, 6]]], id="P6"),
        pytest.param(b"P5\n# by hand\n2 # wide\n1\n#\n255\n#!", [[[35], [33]]], id="comments"),
        pytest.param(b"P2 3 1 15 0 7 15", [[[0], [119], [255]]], id="P2 of 16 levels"),
        pytest.param(b"P6 1 1 100\n\x00\x32\x64", [[[0, 128, 255]]], id="P6 of 101 levels"),
        pytest.param(b"P5 2 1 255\n\n ", [[[10], [32]]], id="pixels that look like spaces"),
    ],
)
def test_decode_netpbm(content, expected):
    assert decode(content, "picture").tolist() == expected


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        pytest.param(npy(GREY[:, :, 0]), GREY, id="npy height x width"),
        pytest.param(npy(GREY), GREY, id="npy height x width x 1"),
        pytest.param(npy(COLOUR), COLOUR, id="npy height x width x 3"),
        pytest.param(npy(np.asfortranarray(COLOUR)), COLOUR, id="npy in Fortran order"),
        pytest.param(png(GREY), GREY, id="grey PNG"),
        pytest.param(png(COLOUR), COLOUR, id="colour PNG"),
        pytest.param(png(GREY.astype(np.uint16) * 257), GREY, id="16-bit PNG"),
        pytest.param(png(GREY // 128 * 255, "1"), GREY // 128 * 255, id="1-bit PNG"),
    ],
)
def test_decode_is_exact(content, expected):
    picture = decode(content, "picture")
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(picture, expected)


def test_decode_jpeg():
    picture = decode(encoded(Image.new("RGB", (7, 5), (200, 100, 50)), "JPEG"), "picture")
    assert picture.shape == (5, 7, 3)
    # JPEG's colour transform and quantization at this quality move a flat colour by a few levels.
    np.testing.assert_allclose(picture.reshape(-1, 3), [[200, 100, 50]] * 35, atol=4)


def test_transparent_pixels_show_white_paper():
    pixels = np.array([[[255, 0, 0, 255], [255, 0, 0, 0], [0, 0, 0, 51]]], np.uint8)
    assert decode(png(pixels), "picture").tolist() == [
        [[255, 0, 0], [255, 255, 255], [204, 204, 204]]
    ]


def test_a_photo_taken_with_the_camera_held_upright_stands_upright():
    stored = np.zeros((16, 48), np.uint8)
    stored[:, 24:] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: the stored left side is the top
    picture = decode(encoded(Image.fromarray(stored), "JPEG", exif=exif), "photo.jpg")
    assert picture.shape == (48, 16, 1)
    assert picture[:16].max() < 20 and picture[32:].min() > 235


# --- decode: what is refused ----------------------------------------------------------------------

GIGANTIC_NPY = "{'descr': '|u1', 'fortran_order': False, 'shape': (10000000, 10000000), }"


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"Dear diary,\n", id="a text"),
        pytest.param(bytes(range(256)), id="bytes"),
        pytest.param(png(COLOUR)[:60], id="truncated PNG"),
        pytest.param(png(COLOUR)[:8], id="only a PNG signature"),
        pytest.param(b"P5 3 2 255\n\1\2\3\4\5", id="truncated P5"),
        pytest.param(b"P5 3 2 255", id="P5 without pixels"),
        pytest.param(b"P5 3", id="truncated PGM header"),
        pytest.param(b"P2 3 2 255 1 2 3 4 5", id="truncated P2"),
        pytest.param(b"P2 2 1 15 3 16", id="P2 value above maxval"),
        pytest.param(b"P5 2 1 15\n\3\x10", id="P5 value above maxval"),
        pytest.param(b"P2 1 1 255 -1", id="P2 value below zero"),
        pytest.param(b"P2 1 1 255 " + b"9" * 20, id="P2 value beyond 64 bits"),
        pytest.param(b"P2 1 1 255 x", id="P2 value that is no number"),
        pytest.param(b"P5 1 1 0\n\0", id="maxval 0"),
        pytest.param(b"P5 1 1 65535\n\0\0", id="PGM of 16 bits"),
        pytest.param(b"P5 0 4 255\n", id="PGM without width"),
        pytest.param(b"P5 999999999 999999999 255\n\1", id="P5 claiming a gigantic size"),
        pytest.param(b"P2 999999999 999999999 255\n1", id="P2 claiming a gigantic size"),
        pytest.param(npy(GREY.astype(np.float32)), id="npy of float32"),
        pytest.param(npy(GREY.astype(np.int64)), id="npy of int64"),
        pytest.param(npy(COLOUR.ravel()), id="npy with 1 axis"),
        pytest.param(npy(np.zeros((3, 5, 7), np.uint8)), id="npy channels x height x width"),
        pytest.param(npy(np.zeros((0, 7), np.uint8)), id="npy without pixels"),
        pytest.param(npy(COLOUR)[:-1], id="truncated npy"),
        pytest.param(npy(COLOUR)[:7], id="only an npy signature"),
        pytest.param(npy_with_header("{'descr': '|u1', "), id="npy with a broken header"),
        pytest.param(npy_with_header(GIGANTIC_NPY), id="npy claiming a gigantic size"),
    ],
)
def test_a_bad_file_is_refused_by_name(content):
    with pytest.raises(BadInput, match=r"holiday\.pic"):
        decode(content, "holiday.pic")


@pytest.mark.parametrize(
    "content", [b"P5 7 5 255\n" + bytes(35), b"P2 7 5 255\n" + b"0 " * 35, png(GREY)]
)
def test_a_picture_of_too_many_pixels_is_refused(content):
    with pytest.raises(BadInput, match="bomb is too large: 7 x 5, and 34 pixels are the most"):
        decode(content, "bomb", 34)
    assert decode(content, "no bomb", 35).shape == (5, 7, 1)


class Trap:
    """Unpickling this creates a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_a_pickled_npy_is_never_unpickled(tmp_path):
    sprung = tmp_path / "sprung"
    content = npy(np.array([Trap(sprung)], dtype=object), allow_pickle=True)
    with pytest.raises(BadInput, match=r"trap\.npy"):
        decode(content, "trap.npy")
    assert not sprung.exists()


def test_without_pillow_a_png_is_missing_it_and_a_pgm_is_not(monkeypatch):
    content = png(GREY)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(Missing, match="pip install pillow"):
        decode(content, "picture.png")
    assert decode(b"P5 1 1 255\n\7", "picture.pgm").tolist() == [[[7]]]


# --- resize ---------------------------------------------------------------------------------------


pictures = arrays.arrays(np.uint8, st.tuples(small, small, st.sampled_from([1, 3])))


def resample_list(line, size):
    """The formula of `resize` for one line of pixels, in Python's integers."""
    length, resampled = len(line), []
    for i in range(size):
        weights = [
            max(0, 2 * max(length, size) - abs((2 * j + 1) * size - (2 * i + 1) * length))
            for j in range(length)
        ]
        weighted = sum(weight * int(pixel) for weight, pixel in zip(weights, line, strict=True))
        resampled.append((2 * weighted + sum(weights)) // (2 * sum(weights)))
    return resampled


def resize_lists(plane, height, width):
    columns = [resample_list(column, height) for column in zip(*plane, strict=True)]
    return [resample_list(row, width) for row in zip(*columns, strict=True)]


@given(pictures, small, small)
@settings(deadline=None)
def test_resize_follows_its_formula(image, height, width):
    resized = resize(image, height, width)
    expected = [resize_lists(image[:, :, c].tolist(), height, width) for c in range(image.shape[2])]
    assert resized.dtype == np.uint8
    assert resized.transpose(2, 0, 1).tolist() == expected


@given(pictures)
@settings(deadline=None)
def test_resize_to_the_same_size_changes_nothing(image):
    np.testing.assert_array_equal(resize(image, *image.shape[:2]), image)


@given(st.integers(0, 255), st.integers(1, 80), st.integers(1, 80), small, small)
@settings(deadline=None)
def test_resize_keeps_a_flat_picture_flat(level, height, width, to_height, to_width):
    flat = np.full((height, width, 3), level, np.uint8)
    np.testing.assert_array_equal(
        resize(flat, to_height, to_width), np.full((to_height, to_width, 3), level, np.uint8)
    )


@pytest.mark.parametrize("mirror", [np.s_[::-1], np.s_[:, ::-1]], ids=["upside down", "sideways"])
@given(pictures, small, small)
@settings(deadline=None)
def test_resize_of_a_mirrored_picture_is_mirrored(mirror, image, height, width):
    np.testing.assert_array_equal(
        resize(image[mirror], height, width), resize(image, height, width)[mirror]
    )


# --- grey, prepare --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("colour", "luma"),
    [((255, 0, 0), 76), ((0, 255, 0), 150), ((0, 0, 255), 29), ((255, 255, 255), 255)],
)
def test_grey_is_bt601_luma(colour, luma):
    assert grey(np.array([[colour]], np.uint8)).tolist() == [[[luma]]]


def test_prepare_only_moves_the_axes_of_a_picture_that_has_the_right_size():
    found = prepare(COLOUR, (3, 5, 7), "picture")
    np.testing.assert_array_equal(found, COLOUR.transpose(2, 0, 1))
    assert found.flags.c_contiguous


@pytest.mark.parametrize("preparation", ["glyph", "picture"])
@pytest.mark.parametrize("source", [GREY, COLOUR], ids=["from grey", "from colour"])
@pytest.mark.parametrize("channels", [1, 3])
def test_prepare_gives_what_the_network_takes(source, channels, preparation):
    found = prepare(source, (channels, 30, 24), preparation)
    assert found.shape == (channels, 30, 24) and found.dtype == np.uint8


def test_prepare_gives_a_grey_picture_three_equal_channels():
    red, green, blue = prepare(GREY, (3, 30, 24), "picture")
    np.testing.assert_array_equal(red, green)
    np.testing.assert_array_equal(red, blue)


def test_prepare_turns_colour_into_luma():
    red = np.full((9, 6, 3), [255, 0, 0], np.uint8)
    assert np.unique(prepare(red, (1, 4, 5), "picture")).tolist() == [76]


# --- glyph ----------------------------------------------------------------------------------------

LETTER = np.zeros((24, 16), bool)  # an L
LETTER[:, :4] = LETTER[20:] = True


@pytest.mark.parametrize("preparation", ["glyph", "picture"])
@pytest.mark.parametrize("channels", [1, 3])
def test_prepare_of_a_photo_leaves_room_on_a_board_of_512_mb(channels, preparation):
    photo = np.random.default_rng(0).integers(0, 256, (1500, 2000, 3), dtype=np.uint8)
    tracemalloc.start()
    prepare(photo, (channels, 28, 28), preparation)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 * photo[:, :, 0].size  # 12 megapixels are less than 200 MB


def page(top=30, left=20, paper=255, ink=0, size=(90, 70)):
    drawing = np.full(size, paper, np.uint8)
    drawing[top : top + 24, left : left + 16][LETTER] = ink
    return drawing


def test_glyph_is_centred_bright_ink_on_black():
    found = glyph(page(), 28, 28).astype(float)
    rows, columns = np.nonzero(found)
    assert max(np.ptp(rows), np.ptp(columns)) + 1 == 20
    centre = [(found * place).sum() / found.sum() for place in np.indices(found.shape)]
    np.testing.assert_allclose(centre, [13.5, 13.5], atol=1)
    assert found.max() == 255
    assert found[10, columns.min()] == 255 and found[10, columns.max()] == 0  # still an L


def test_glyph_fits_a_target_that_is_not_square():
    rows, columns = np.nonzero(glyph(page(), 56, 28))
    assert np.ptp(rows) + 1 == 20 and np.ptp(columns) + 1 == 13


@pytest.mark.parametrize(("paper", "ink"), [(255, 0), (230, 20), (200, 90), (160, 0)])
def test_glyph_of_a_negative_is_the_same(paper, ink):
    drawing = page(paper=paper, ink=ink)
    found = glyph(drawing, 28, 28)
    assert found.any()
    np.testing.assert_array_equal(glyph(255 - drawing, 28, 28), found)


@pytest.mark.parametrize(
    ("paper", "ink"), [(110, 20), (150, 250)], ids=["a dim photo", "chalk on a light board"]
)
def test_glyph_sees_the_ink_on_paper_of_any_brightness(paper, ink):
    np.testing.assert_array_equal(glyph(page(paper=paper, ink=ink), 28, 28), glyph(page(), 28, 28))


@given(st.integers(1, 65), st.integers(1, 53))
@settings(deadline=None)
def test_glyph_does_not_depend_on_where_the_drawing_stands(top, left):
    np.testing.assert_array_equal(glyph(page(top, left), 28, 28), glyph(page(), 28, 28))


@pytest.mark.parametrize(("top", "left"), [(0, 20), (30, 0), (66, 54)])
def test_glyph_may_touch_the_edge_of_the_page(top, left):
    np.testing.assert_array_equal(glyph(page(top, left), 28, 28), glyph(page(), 28, 28))


@pytest.mark.parametrize("level", [0, 90, 128, 255])
def test_glyph_of_a_blank_page_is_black(level):
    assert not glyph(np.full((90, 70), level, np.uint8), 28, 28).any()


@given(arrays.arrays(np.uint8, (26, 26)))
@settings(deadline=None)
def test_glyph_leaves_an_mnist_picture_alone(inside):
    picture = np.pad(inside, 1)
    np.testing.assert_array_equal(glyph(picture, 28, 28), picture)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("paper", "ink"), [(220, 40), (40, 220)], ids=["dark ink", "bright ink"])
def test_glyph_of_noisy_paper_has_a_black_background(paper, ink, seed):
    noise = np.random.default_rng(seed).integers(-5, 6, (90, 70))
    found = glyph((page(paper=paper, ink=ink) + noise).astype(np.uint8), 28, 28)
    background = glyph(page(), 28, 28) == 0  # the corners, and beside the L's upright
    assert not found[background].any()
    assert found[~background].any()


def test_glyph_of_two_specks_of_dust_on_a_large_page():
    dusty = np.full((1000, 800), 255, np.uint8)
    dusty[5, 5] = dusty[900, 700] = 0
    assert glyph(dusty, 28, 28).shape == (28, 28)
