import gzip
import hashlib
import struct
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pipeline import data, idx
from pipeline.errors import BadInput, Missing, UsageError

NAME = "train-images-idx3-ubyte"
SHAPE = (5, 4, 3)
ARRAY = np.arange(60, dtype=np.uint8).reshape(SHAPE)
MNIST = Path(__file__).parents[2] / "shared/data"


def idx_bytes(shape=SHAPE, kind=8, values=ARRAY):
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + values.tobytes()


RAW = idx_bytes()
PACKED = gzip.compress(RAW, mtime=0)
FLIPPED = RAW[:-1] + bytes([RAW[-1] ^ 1])
SHA256 = hashlib.sha256(RAW).hexdigest()
PLAIN = idx.IdxFile(NAME, SHAPE, content_sha256=SHA256)


@pytest.mark.parametrize("folder", ["", "mnist"])
@pytest.mark.parametrize(("name", "content"), [(NAME, RAW), (f"{NAME}.gz", PACKED)])
def test_raw_and_gzipped_idx_give_the_same_array(tmp_path, folder, name, content):
    place = tmp_path / folder
    place.mkdir(exist_ok=True)
    (place / name).write_bytes(content)
    found = idx.load(PLAIN, "mnist", (), tmp_path)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, ARRAY)


BROKEN = {
    "truncated gzip": (
        PACKED[:-9],
        ["expected 76 bytes", f"a truncated gzip of {len(PACKED) - 9}"],
    ),
    "gzip cut in its header": (PACKED[:5], ["expected 76 bytes", "a truncated gzip of 5"]),
    "corrupt gzip body": (
        PACKED[:30] + b"\xff\xff\xff" + PACKED[33:],
        ["expected 76 bytes", "broken"],
    ),
    "truncated raw": (RAW[:-7], ["expected 76 bytes", "found 69"]),
    "bytes too many": (RAW + b"\0", ["expected 76 bytes", "found 77"]),
    "raw cut in its header": (RAW[:9], ["expected an IDX header", "found a truncated header"]),
    "wrong shape": (idx_bytes((5, 3, 4)), ["expected", "(5, 4, 3)", "found", "(5, 3, 4)"]),
    "wrong rank": (idx_bytes((60,)), ["expected", "(5, 4, 3)", "found", "(60,)"]),
    "wrong type": (idx_bytes(kind=0x0D), ["expected", "uint8", "found type 0x0d"]),
    "not IDX": (b"<!DOCTYPE html>", ["expected an IDX header", "found no IDX header"]),
    "empty": (b"", ["expected an IDX header", "found", "empty file"]),
    "a flipped byte": (FLIPPED, ["expected", SHA256, "found"]),
    "a flipped byte, gzipped": (gzip.compress(FLIPPED), ["expected", SHA256, "found"]),
}


@pytest.mark.parametrize(("content", "words"), BROKEN.values(), ids=BROKEN)
def test_broken_idx_says_which_file_what_was_expected_and_found(tmp_path, content, words):
    path = tmp_path / NAME
    path.write_bytes(content)
    with pytest.raises(BadInput) as caught:
        idx.load(PLAIN, "mnist", (), tmp_path)
    assert str(path) in str(caught.value)
    for word in words:
        assert word in str(caught.value)


@given(position=st.integers(0, len(PACKED) - 1), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_gzip_never_gives_other_values(tmp_path_factory, position, bit, cut):
    damaged = bytearray(PACKED[:position] if cut else PACKED)
    if not cut:
        damaged[position] ^= 1 << bit
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        found = idx.parse(path, idx.IdxFile(NAME, SHAPE))
    except BadInput:
        return
    np.testing.assert_array_equal(found, ARRAY)  # some header bits mean nothing


def test_a_file_missing_from_the_data_folder_is_named(tmp_path):
    with pytest.raises(Missing) as caught:
        data.load_dataset("mnist", (1, 28, 28), 0, tmp_path)
    for word in (NAME, str(tmp_path), "--data-dir"):
        assert word in str(caught.value)


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def mirrors(tmp_path, monkeypatch):
    """A server with the folders good, changed, page (HTML for everything) and empty."""
    monkeypatch.setenv("PIPELINE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    contents = {"good": PACKED, "changed": gzip.compress(FLIPPED), "page": b"<html>Log in</html>"}
    (tmp_path / "empty").mkdir()
    for folder, content in contents.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{NAME}.gz").write_bytes(content)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=tmp_path))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    yield lambda *folders: tuple(f"{address}/{folder}/" for folder in folders)
    server.shutdown()
    server.server_close()


ARCHIVE_KNOWN = idx.IdxFile(NAME, SHAPE, archive_sha256=hashlib.sha256(PACKED).hexdigest())


@pytest.mark.parametrize("file", [ARCHIVE_KNOWN, PLAIN], ids=["archive hash", "content hash"])
@pytest.mark.parametrize("first", ["good", "empty", "changed", "page"])
def test_the_second_mirror_helps_where_the_first_fails(mirrors, file, first):
    np.testing.assert_array_equal(idx.load(file, "mnist", mirrors(first, "good"), None), ARRAY)


def test_what_was_downloaded_once_is_not_downloaded_again(mirrors):
    idx.load(ARCHIVE_KNOWN, "mnist", mirrors("good"), None)
    np.testing.assert_array_equal(
        idx.load(ARCHIVE_KNOWN, "mnist", mirrors("empty"), None),
        ARRAY,
    )


@pytest.mark.parametrize(("folders", "reason"), [(["empty"] * 2, "404"), (["changed"], "hash")])
def test_no_mirror_works(mirrors, folders, reason):
    with pytest.raises(Missing) as caught:
        idx.load(ARCHIVE_KNOWN, "mnist", mirrors(*folders), None)
    for word in (f"{NAME}.gz", reason, "--data-dir"):
        assert word in str(caught.value)


def test_no_network(monkeypatch):
    asked = []

    def fail(url, **_):
        asked.append(url)
        raise OSError("no route to host")

    monkeypatch.setattr("pooch.retrieve", fail)
    monkeypatch.delenv("PIPELINE_DATA_DIR", raising=False)
    with pytest.raises(Missing, match=rf"{NAME}\.gz cannot be downloaded.*no route to host"):
        data.load_dataset("mnist", (1, 28, 28), 0)
    assert len(asked) == 2  # both mirrors were tried


@pytest.mark.skipif(not MNIST.is_dir(), reason="there is no shared MNIST beside this repository")
def test_the_real_mnist_is_accepted():
    mnist = data.load_dataset("mnist", (1, 28, 28), 0, MNIST)
    assert len(mnist.train) + len(mnist.validation) == 60000
    assert len(mnist.validation) == pytest.approx(5000, abs=5)  # rounded in each of ten classes
    assert len(mnist.test) == 10000
    assert {split.images.shape[1:] for split in splits_of(mnist)} == {(1, 28, 28)}
    assert mnist.test.labels[:5].tolist() == [7, 2, 1, 0, 4]


@pytest.fixture(scope="module")
def digits():
    return data.load_dataset("digits", (1, 28, 28), seed=0)


def splits_of(dataset):
    return [dataset.train, dataset.validation, dataset.test]


def pictures_in(split):
    return [image.numpy().tobytes() for image in split.images]


def test_every_digit_is_in_exactly_one_split(digits):
    pictures = [picture for split in splits_of(digits) for picture in pictures_in(split)]
    assert len(pictures) == len(set(pictures)) == 1797
    assert all(split.images.shape[1:] == (1, 28, 28) for split in splits_of(digits))


def test_digits_are_bright_on_black(digits):
    for split in splits_of(digits):
        images = split.images.numpy()[:, 0]
        border = np.concatenate([images[:, 0], images[:, -1], images[:, :, 0], images[:, :, -1]], 1)
        assert (np.median(border, axis=1) == 0).all()
        assert (images.max(axis=(1, 2)) > 200).all()


def test_every_split_has_each_digit_in_proportion(digits):
    labels = [split.labels.numpy() for split in splits_of(digits)]
    shares = [np.bincount(part, minlength=10) / len(part) for part in labels]
    overall = np.bincount(np.concatenate(labels)) / 1797
    for share in shares:
        np.testing.assert_allclose(share, overall, atol=0.01)  # one or two of 120 images


def test_the_seed_decides_the_split(digits):
    again, other = (data.load_dataset("digits", (1, 28, 28), seed) for seed in (0, 1))
    assert again.sha256 == digits.sha256 != other.sha256
    assert pictures_in(other.test) != pictures_in(digits.test)


def test_validation_is_cut_from_training_where_there_is_a_test_split(monkeypatch):
    numbers = np.arange(240, dtype=np.uint8)
    numbered = np.broadcast_to(numbers[:, None, None], (240, 28, 28)).copy()
    labels = numbers.astype(np.int64) % 2
    source = data.Source(
        lambda _: ((numbered[:200], labels[:200]), (numbered[200:], labels[200:])),
        ("even", "odd"),
        "glyph",
        data.Usual(1),
    )
    monkeypatch.setitem(data.DATASETS, "numbered", source)
    for seed in range(3):
        parts = data.load_dataset("numbered", (1, 28, 28), seed)
        train, validation, test = (split.images[:, 0, 0, 0].tolist() for split in splits_of(parts))
        assert test == list(range(200, 240))
        assert sorted(train + validation) == list(range(200))  # each in one of the two
        assert len(validation) == 16  # a twelfth of each class, rounded


COUNTS = {"cat": 10, "bird": 20, "dog": 3}
RED = {"bird": 40, "cat": 90, "dog": 140}


@pytest.fixture
def photos(tmp_path):
    """A folder of pictures of unequal sizes; red tells the class and green the picture."""
    for name, count in COUNTS.items():
        (tmp_path / name).mkdir()
        for number in range(count):
            colour = (RED[name], number, 255)
            size = (7 + number, 31 - number)
            Image.new("RGB", size, colour).save(tmp_path / name / f"{number}.png")
    (tmp_path / ".cache").mkdir()
    (tmp_path / "notes.txt").write_text("not a class")
    (tmp_path / "cat" / "notes.txt").write_text("not a picture")
    return tmp_path


def test_a_folder_of_pictures_is_a_data_set(photos):
    dataset = data.load_dataset(str(photos), (3, 12, 20), seed=0)
    assert dataset.labels == ("bird", "cat", "dog")
    seen = []
    for split in splits_of(dataset):
        assert split.images.shape[1:] == (3, 12, 20)
        assert set(split.labels.tolist()) == {0, 1, 2}
        for image, label in zip(split.images, split.labels, strict=True):
            assert (image[0] == RED[dataset.labels[label]]).all()
            assert (image[2] == 255).all()
            seen.append((int(label), int(image[1, 0, 0])))
    expected = [(i, n) for i, name in enumerate(dataset.labels) for n in range(COUNTS[name])]
    assert sorted(seen) == expected
    assert np.bincount(dataset.test.labels).tolist() == [4, 2, 1]  # a fifth


def test_a_grey_network_takes_coloured_pictures(photos):
    assert data.load_dataset(str(photos), (1, 9, 6), seed=0).train.images.shape[1:] == (1, 9, 6)


def remove_pictures(folder):
    (folder / "dog" / "0.png").unlink()
    return [str(folder / "dog"), "2 pictures", "at least 3"]


def remove_classes(folder):
    for name in ("dog", "bird"):
        (folder / name).rename(folder / f".{name}")
    return [str(folder), "a subfolder for each of 2 or more classes", "found 1"]


def truncate_picture(folder):
    path = folder / "cat" / "4.png"
    path.write_bytes(path.read_bytes()[:40])
    return [str(path), "not a picture"]


def replace_picture(folder):
    (folder / "bird" / "7.png").write_text("hello")
    return [str(folder / "bird" / "7.png"), "not a picture"]


def empty_picture(folder):
    (folder / "bird" / "7.png").write_bytes(b"")
    return [str(folder / "bird" / "7.png"), "empty"]


@pytest.mark.parametrize(
    "damage", [remove_pictures, remove_classes, truncate_picture, replace_picture, empty_picture]
)
def test_what_is_wrong_with_a_folder_of_pictures_is_named(photos, damage):
    words = damage(photos)
    with pytest.raises(BadInput) as caught:
        data.load_dataset(str(photos), (3, 12, 20), seed=0)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "meant"), [("minst", "mnist"), ("digit", "digits"), ("fashion", "fashion-mnist")]
)
def test_an_unknown_data_set_is_guessed(typed, meant):
    with pytest.raises(UsageError, match=f"unknown data set '{typed}'; did you mean '{meant}'"):
        data.load_dataset(typed, (1, 28, 28), seed=0)
