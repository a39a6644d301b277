"""Both pages in Chromium: what `runner serve` gives a person, and the report of a run."""

import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from serving import serving

playwright = pytest.importorskip(
    "playwright.sync_api", reason="there is no playwright: pip install -e '.[browser]'"
)
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium: apt install chromium"),
]
AXE = "axe-core@4.14.1"
SEVEN = [(0.3, 0.2), (0.7, 0.2), (0.55, 0.5), (0.35, 0.5), (0.72, 0.5), (0.55, 0.5), (0.45, 0.85)]
THREE = [(0.3, 0.2), (0.7, 0.2), (0.45, 0.45), (0.68, 0.6), (0.6, 0.8), (0.3, 0.8)]
DEVICES = {
    "desktop": {"viewport": {"width": 1280, "height": 900}},
    "phone": {
        "viewport": {"width": 360, "height": 740},
        "has_touch": True,
        "is_mobile": True,
        "color_scheme": "dark",
    },
}


@pytest.fixture(scope="module")
def served(unpacked):
    with serving(unpacked) as found:
        yield found


@pytest.fixture(scope="module")
def chromium():
    with playwright.sync_playwright() as driver:
        # In a container, root has no sandbox; what is opened here is our own.
        options = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=options)
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Where screenshots go: SCREENSHOTS, to keep and look at them, or a temporary folder."""
    folder = Path(os.environ.get("SCREENSHOTS") or tmp_path_factory.mktemp("screenshots"))
    folder.mkdir(parents=True, exist_ok=True)
    return folder


@pytest.fixture(params=DEVICES)
def page(request, chromium):
    """A page whose complaints and requests are kept in `complaints` and `requests`."""
    context = chromium.new_context(**DEVICES[request.param])
    page = context.new_page()
    page.device, page.complaints, page.requests = request.param, [], []
    page.on("console", lambda m: page.complaints.append(m.text) if m.type == "error" else None)
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("request", lambda request: page.requests.append(request.url))
    yield page
    context.close()


def refuse_complaints(page, origin):
    assert page.complaints == []
    assert page.requests
    own = (origin, "data:", "blob:")
    assert [url for url in page.requests if not url.startswith(own)] == []


def refuse_overflow(page):
    widths = page.evaluate("[document.documentElement.scrollWidth, window.innerWidth]")
    assert widths[0] <= widths[1]


def draw(page, points):
    """By the mouse, as one stroke; and the answer to it."""
    box = page.locator("#pen").bounding_box()
    places = [(box["x"] + x * box["width"], box["y"] + y * box["height"]) for x, y in points]
    page.mouse.move(*places[0])
    page.mouse.down()
    for place in places[1:]:
        page.mouse.move(*place, steps=8)
    page.mouse.up()
    return settled(page)


def settled(page):
    """The answer when nothing is sent any more."""
    answer = page.locator("#answer:not([aria-busy])", has_not_text="Nothing yet")
    answer.wait_for()
    return answer.inner_text()


def opened(page, served):
    page.goto(served.url)
    page.wait_for_selector("#scores li")
    return page


def test_what_is_drawn_is_answered(page, served, pictures):
    opened(page, served)
    for digit, points in (("3", THREE), ("7", SEVEN)):
        assert draw(page, points).startswith(f"{digit} (")
        assert page.locator("#scores .best .name").inner_text() == digit
        page.screenshot(path=pictures / f"serve-{page.device}-{digit}.png", full_page=True)
        assert page.locator("#layers canvas").count() == 6 + 6 + 6 + 16
        page.click("#clear")
        assert settled(page) == "No ink found"
    assert "ms in the network" in page.locator("#latency").inner_text()
    refuse_overflow(page)
    refuse_complaints(page, served.url)


def test_the_keyboard_draws(page, served, pictures):
    opened(page, served)
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "pen"
    for keys in ("ArrowUp " * 9, "Space", "ArrowDown " * 18, "Space"):
        for key in keys.split():
            page.keyboard.press(key)
    assert settled(page).startswith("1 (")
    page.screenshot(path=pictures / f"serve-{page.device}-keyboard.png", full_page=True)
    page.keyboard.press("Delete")
    assert settled(page) == "No ink found"
    refuse_complaints(page, served.url)


def test_a_file_is_uploaded(page, served, unpacked, tmp_path):
    """The answer is that of `predict` to a program that sends the same picture."""
    with np.load(unpacked / "golden.npz") as golden:
        digit, answer = golden["images"][0, 0], int(golden["int8"][0].argmax())
    ink = Image.fromarray(255 - digit).resize((560, 560), Image.Resampling.BICUBIC)
    ink.save(tmp_path / "a.png")
    opened(page, served)
    page.set_input_files("#choose", tmp_path / "a.png")
    assert settled(page).startswith(f"{answer} (")
    (tmp_path / "b.png").write_bytes(b"no picture")
    page.set_input_files("#choose", tmp_path / "b.png")
    page.wait_for_selector("#answer.bad")
    assert page.locator("#answer").inner_text() == "b.png: not a picture that this browser reads"
    assert page.locator("#latency").inner_text() == ""  # nothing is left of the other answer
    assert page.locator(".best").count() == 0
    page.complaints.clear()  # Chromium may say so, too
    refuse_complaints(page, served.url)


def test_photographs_are_for_what_has_a_touch_screen(page, served):
    opened(page, served)
    assert page.locator("#camera").is_visible() == (page.device == "phone")


def test_a_runtime_without_layers_leaves_no_hole(page, unpacked):
    with serving(unpacked) as served:
        page.route("**/predict*", lambda route: route.fulfill(json=without_layers(route)))
        opened(page, served)
        assert draw(page, THREE).startswith("3 (")
        assert not page.locator("#inside").is_visible()
        refuse_complaints(page, served.url)


def without_layers(route):
    return route.fetch().json() | {"layers": []}


def test_the_token_is_asked_for_once(page, unpacked):
    with serving(unpacked, "--token", "sesame") as served:
        opened(page, served)
        draw(page, THREE)
        assert page.locator("#answer").inner_text() == "Enter the token first"
        page.fill("#token", "sesame")
        page.click("#entrance button")
        page.wait_for_selector("#entrance", state="hidden")
        assert settled(page).startswith("3 (")
        page.reload()
        page.wait_for_selector("#scores li")
        assert draw(page, THREE).startswith("3 (")
        assert [text for text in page.complaints if "401" not in text] == []


@pytest.fixture(scope="module")
def axe(tmp_path_factory):
    """The source of axe-core, from npm."""
    if shutil.which("npm") is None:
        pytest.skip("there is no npm: apt install npm")
    folder = tmp_path_factory.mktemp("npm")
    done = subprocess.run(
        ["npm", "install", "--silent", "--no-audit", "--no-fund", "--prefix", str(folder), AXE],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(f"npm gives no {AXE}: {(done.stderr.splitlines() or ['no word'])[-1]}")
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


def refuse_barriers(page, axe):
    """Nothing that axe-core calls serious or critical. It is evaluated, which no policy forbids."""
    page.evaluate(axe)
    found = page.evaluate("axe.run().then((results) => results.violations)")
    worst = [each for each in found if each["impact"] in ("serious", "critical")]
    assert [(each["id"], each["nodes"][0]["html"]) for each in worst] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_shut_out_of_the_page(page, served, axe, scheme):
    page.emulate_media(color_scheme=scheme)
    opened(page, served)
    refuse_barriers(page, axe)
    draw(page, SEVEN)
    refuse_barriers(page, axe)


# --- the report of a run --------------------------------------------------------------------------


@pytest.fixture
def report(trained):
    return trained / "small" / "report.html"


def test_the_report_is_read_anywhere(page, report, pictures):
    page.goto(report.as_uri())
    refuse_overflow(page)
    refuse_complaints(page, report.as_uri())
    assert page.evaluate("[...document.images].every((image) => image.naturalWidth > 0)")
    page.screenshot(path=pictures / f"report-{page.device}.png", full_page=True)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nobody_is_shut_out_of_the_report(page, report, axe, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(report.as_uri())
    refuse_barriers(page, axe)
