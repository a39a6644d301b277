"""`runner serve` as a program meets it: the WSGI application here, and a process on a port."""

import base64
import http.client
import io
import json
import os
import re
import resource
import signal
import socket
import subprocess
import sys
import time
import urllib.request
import zlib
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from struct import pack
from types import SimpleNamespace
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import numpy as np
import pytest
from PIL import Image
from serving import serving
from test_runner import BANDS, MODEL, banded, bundle_contents, golden, runner, write
from waitress.adjustments import Adjustments

from deploy.runner.backends import open_with
from deploy.runner.serve.application import PAGE, Application
from deploy.runner.serve.classifier import MAX_PIXELS, Classifier
from deploy.runner.serve.server import Channel

RAW = "application/octet-stream"
MAX_BYTES = 100_000


@pytest.fixture(scope="module")
def bands(tmp_path_factory):
    """A bundle whose network sees which third of a picture is bright, for ONNX Runtime."""
    return write(tmp_path_factory.mktemp("serve") / "bands-bundle", bundle_contents(golden()))


@pytest.fixture(scope="module")
def classifier(bands):
    return Classifier(open_with("onnxruntime", bands / MODEL))


@pytest.fixture
def app(classifier):
    return Application(classifier, None, MAX_BYTES)


def call(app, method, path, body=b"", kind="", **environment):
    """(status, headers, content) of one request."""
    path, _, query = path.partition("?")
    environ = {"REQUEST_METHOD": method, "SCRIPT_NAME": "", "PATH_INFO": path}
    environ["QUERY_STRING"] = query
    environ |= {"CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body), **environment}
    if kind:
        environ["CONTENT_TYPE"] = kind
    setup_testing_defaults(environ)
    found = []
    answer = validator(app)(environ, lambda *start: found.append(start))
    content = b"".join(answer)
    answer.close()
    status, headers = found[0][:2]
    return int(status[:3]), dict(headers), content


def predict(app, body, kind="", query="", **environment):
    status, _, content = call(app, "POST", f"/predict{query}", body, kind, **environment)
    return status, json.loads(content)


def encoded(label, kind):
    picture = banded(label)
    if kind == RAW:
        raw = np.zeros((28, 28), np.uint8)
        raw[BANDS[label]] = 255
        return raw.tobytes()
    if kind == "image/x-portable-graymap":
        return b"P5 30 42 255\n" + picture.tobytes()
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, kind.removeprefix("image/"))
    return buffer.getvalue()


KINDS = ["image/png", "image/jpeg", "image/x-portable-graymap", RAW]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("label", BANDS)
def test_a_picture_is_answered(app, kind, label):
    status, answer = predict(app, encoded(label, kind), kind)
    assert (status, answer["label"]) == (200, label)
    chances = {each["label"]: each["probability"] for each in answer["probabilities"]}
    assert list(chances) == list(BANDS)
    assert max(chances, key=chances.get) == label
    assert sum(chances.values()) == pytest.approx(1, abs=1e-6)
    assert answer["probability"] == chances[label] and answer["latency_ms"] > 0


def test_the_answer_is_that_of_predict(app, bands, tmp_path):
    (tmp_path / "a.png").write_bytes(encoded("middle", "image/png"))
    said = json.loads(runner(bands, "predict", str(tmp_path / "a.png"), "--json").stdout)
    answer = predict(app, encoded("middle", "image/png"))[1]
    assert answer["probability"] == said["answers"][0]["probability"]


def test_what_the_network_sees_is_shown_on_demand(app):
    assert "input" not in predict(app, encoded("top", RAW), RAW)[1]
    answer = predict(app, encoded("top", RAW), RAW, "?layers=1")[1]
    assert answer["input"]["shape"] == [1, 28, 28]
    assert base64.b64decode(answer["input"]["pixels"]) == encoded("top", RAW)
    assert answer["layers"] == []  # ONNX Runtime shows none


def png_of(width, height):
    """A PNG that claims this size, with no pixels in it."""
    head = pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    parts = [(b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")]
    chunks = [pack(">I", len(c)) + n + c + pack(">I", zlib.crc32(n + c)) for n, c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


BAD = {
    "no such path": ("GET", "/secret", b"", "", 404, "nothing here"),
    "a path upwards": ("GET", "/../manifest.json", b"", "", 404, "nothing here"),
    "GET of predict": ("GET", "/predict", b"", "", 405, "POST"),
    "POST of the page": ("POST", "/", b"", "", 405, "GET"),
    "DELETE": ("DELETE", "/healthz", b"", "", 405, "GET"),
    "nothing": ("POST", "/predict", b"", "", 422, "empty"),
    "text": ("POST", "/predict", b"hello", "text/plain", 415, "text/plain is no picture"),
    "text as a picture": ("POST", "/predict", b"hello", "image/png", 422, "not a picture"),
    "half a picture": ("POST", "/predict", b"P5 9 9 255\n123", "", 422, "truncated"),
    "a bomb": ("POST", "/predict", png_of(60000, 60000), "image/png", 422, "decompression bomb"),
    "a photograph": (
        "POST",
        "/predict",
        png_of(8000, 6000),
        "image/png",
        422,
        "8000 x 6000",
    ),
    "a small bomb": ("POST", "/predict", b"P5 2501 1000 255\n", "", 422, "too large: 2501 x 1000"),
    "raw of another size": ("POST", "/predict", bytes(783), RAW, 422, "the input has 784"),
    "too large": ("POST", "/predict", bytes(MAX_BYTES + 1), RAW, 413, f"longer than {MAX_BYTES}"),
    "layers": ("POST", "/predict?layers=2", bytes(784), RAW, 400, "layers is 0 or 1"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_answered_in_one_line(app, case):
    method, path, body, kind, expected, words = BAD[case]
    status, headers, content = call(app, method, path, body, kind)
    assert status == expected
    assert content.count(b"\n") == 1 and words in json.loads(content)["error"]
    assert ("Allow" in headers) == (status == 405)
    assert predict(app, encoded("top", RAW), RAW)[0] == 200  # and it goes on


def test_without_pillow_png_is_refused_and_pgm_answered(app, monkeypatch):
    png, pgm = (encoded("top", kind) for kind in ("image/png", "image/x-portable-graymap"))
    monkeypatch.setitem(sys.modules, "PIL", None)
    assert predict(app, png)[0] == 415
    assert predict(app, pgm)[1]["label"] == "top"


@pytest.mark.parametrize(
    "given", [None, "", "Bearer", "Bearer sesam", "Basic sésame", "Bearer \xff"]
)
def test_who_lacks_the_token_is_not_let_in(classifier, given):
    app = Application(classifier, "sesame", MAX_BYTES)
    environment = {} if given is None else {"HTTP_AUTHORIZATION": given}
    for method, path in (("POST", "/predict"), ("GET", "/metrics")):
        status, headers, content = call(app, method, path, bytes(784), RAW, **environment)
        assert (status, headers["WWW-Authenticate"]) == (401, "Bearer")
        assert "token" in json.loads(content)["error"]
    for path in (*PAGE, "/healthz"):  # nothing secret: the page asks for the token itself
        assert call(app, "GET", path)[0] == 200


def test_who_has_the_token_is_let_in(classifier):
    app = Application(classifier, "sesame", MAX_BYTES)
    key = {"HTTP_AUTHORIZATION": "Bearer sesame"}
    assert predict(app, encoded("top", RAW), RAW, **key)[1]["label"] == "top"
    assert call(app, "GET", "/metrics", **key)[0] == 200


def test_the_page_is_small_strict_and_alone(app):
    sizes, texts = [], {}
    for path in PAGE:
        status, headers, content = call(app, "GET", path)
        assert status == 200
        assert call(app, "HEAD", path)[1:] == (headers, b"")
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'") and "unsafe" not in policy
        sizes.append(len(content))
        texts[path] = content.decode()
    assert sum(sizes) < 60_000
    assert not [p for p, t in texts.items() if re.search(r"(https?:)?//[a-z]+\.", t)]
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script>", texts["/"])
    document = json.loads(texts["/openapi.json"])
    assert set(document["paths"]) == {"/predict", "/healthz", "/metrics"}
    assert f"{MAX_PIXELS:,} pixels" in texts["/openapi.json"]


def test_metrics_count(app):
    predict(app, encoded("top", RAW), RAW)
    predict(app, b"no")
    call(app, "GET", "/favicon.ico")
    text = call(app, "GET", "/metrics")[2].decode()
    assert 'runner_requests_total{path="/predict",status="200"} 1\n' in text
    assert 'runner_requests_total{path="/predict",status="422"} 1\n' in text
    assert 'runner_requests_total{path="other",status="404"} 1\n' in text
    assert "runner_inference_seconds_count 1\n" in text
    assert 'le="+Inf"} 1\n' in text
    line = re.compile(r'(# (HELP|TYPE) \w+ .+|\w+(\{\w+="[^"]*"(,\w+="[^"]*")*\})? [\d.e+-]+)')
    assert all(line.fullmatch(each) for each in text.splitlines())


def test_health_says_which_model(app):
    health = json.loads(call(app, "GET", "/healthz")[2])
    assert health["status"] == "ok"
    assert (health["model"], health["labels"]) == ("bands", list(BANDS))
    assert not health["layers"]


def test_a_defect_of_ours_is_one_line_too(app, classifier, monkeypatch, capsys):
    monkeypatch.setattr(classifier, "answer", lambda *_: 1 / 0)
    status, answer = predict(app, encoded("top", RAW), RAW)
    assert (status, answer) == (500, {"error": "the server failed; see its log"})
    assert "ZeroDivisionError" in capsys.readouterr().err


def test_many_at_once_get_their_own_answers(app):
    labels = list(BANDS) * 20
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda label: predict(app, encoded(label, RAW), RAW)[1], labels))
    assert [answer["label"] for answer in answers] == labels


def test_the_c_library_shows_its_layers(unpacked):
    model = open_with("c", next(unpacked.glob("*int8.so")))
    app = Application(Classifier(model), None, MAX_BYTES)
    answer = predict(app, bytes(range(256)) * 3 + bytes(16), RAW, "?layers=1")[1]
    shapes = [layer["shape"] for layer in answer["layers"]]
    assert shapes == [[6, 28, 28], [6, 28, 28], [6, 14, 14], [16, 10, 10]]
    for layer, shape in zip(answer["layers"], shapes, strict=True):
        pixels = np.frombuffer(base64.b64decode(layer["pixels"]), np.uint8)
        assert pixels.size == np.prod(shape)
        assert (pixels.min(), pixels.max()) == (0, 255)
    assert answer["layers"][0]["operators"] == "Conv"


# --- a process ------------------------------------------------------------------------------------


def post(label="top", length=None):
    body = encoded(label, RAW)
    head = f"POST /predict HTTP/1.1\r\nHost: pi\r\nContent-Type: {RAW}\r\n"
    return f"{head}Content-Length: {length or len(body)}\r\n\r\n".encode(), body


def reply(connection):
    response = http.client.HTTPResponse(connection)
    response.begin()
    return response.status, json.loads(response.read())


def get(served, path="healthz"):
    with urllib.request.urlopen(served.url + path, timeout=60) as response:
        return response.read()


def test_the_loop_leaves_to_the_worker_what_it_is_sending():
    ours, theirs = socket.socketpair()
    with ours, theirs, ThreadPoolExecutor(1) as worker:
        channel = Channel(SimpleNamespace(active_channels={}), ours, ("", 0), Adjustments(), {})
        channel.total_outbufs_len = 1
        assert channel.writable()
        with channel.outbuf_lock:
            assert not worker.submit(channel.writable).result()
        assert worker.submit(channel.writable).result()


def test_waitress_is_in_the_runner(bands):
    program = f"import sys; sys.path.insert(0, {str(bands / 'runner.pyz')!r}); "
    program += "import waitress.server; print(waitress.server.__file__)"
    found = subprocess.check_output([sys.executable, "-I", "-c", program], text=True)
    assert found.startswith(f"{bands / 'runner.pyz'}/waitress/")


def test_it_serves_until_sigterm(bands):
    with serving(bands) as served, served.connect() as idle:
        assert b"<!doctype html>" in get(served, "")
        idle.sendall(b"".join(post("bottom")))
        assert reply(idle)[1]["label"] == "bottom"
        assert served.end() == 0  # though a connection is open
        assert served.process.stderr.read() == ""


def test_sigterm_in_the_middle_of_a_request_finishes_it(bands):
    with serving(bands) as served, served.connect() as slow:
        head, body = post("middle")
        slow.sendall(head + body[:300])
        get(served)  # by now the half has been received
        served.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionRefusedError):
            while True:
                served.connect().close()
                time.sleep(0.05)
        slow.sendall(body[300:])
        assert reply(slow)[1]["label"] == "middle"
        assert served.process.wait(60) == 0


def test_sigterm_finishes_what_waits(bands):
    """Eight connections that have sent all, and that the server has not yet accepted."""
    labels = [list(BANDS)[i % 3] for i in range(8)]
    with serving(bands, changed=(60, 0.3)) as served:
        idle = served.connect()
        get(served)
        served.process.send_signal(signal.SIGSTOP)
        asking = [served.connect() for _ in labels]
        for connection, label in zip(asking, labels, strict=True):
            connection.sendall(b"".join(post(label)))
        idle.close()
        served.process.send_signal(signal.SIGTERM)
        served.process.send_signal(signal.SIGCONT)
        assert [reply(connection)[1]["label"] for connection in asking] == labels
        assert served.process.wait(60) == 0


def test_who_waits_for_an_answer_is_not_silent_and_others_are_received(bands):
    with serving(bands, changed=(1, 0.5)) as served:
        asking = [served.connect() for _ in range(6)]  # the last waits for three seconds
        for connection in asking:
            connection.sendall(b"".join(post("middle")))
        with served.connect() as large:  # while a picture is in work
            large.sendall(post(length=2_000_000)[0] + bytes(2_000_000))
            assert [reply(connection)[1]["label"] for connection in asking] == ["middle"] * 6
            assert reply(large)[0] == 422
        assert served.end() == 0


def test_slow_and_silent_ones_are_let_go_and_others_answered(bands):
    with serving(bands, changed=(1, 0)) as served:
        with served.connect() as silent, served.connect() as slow:
            slow.sendall(post()[0])
            ended = None
            while ended is None:
                assert json.loads(get(served))["status"] == "ok"
                time.sleep(0.1)
                try:
                    slow.sendall(b"x")
                except OSError as error:
                    ended = error
            assert silent.recv(1) == b""
        assert served.end() == 0


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"rubbish\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nContent-Length: many\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 20000 + b"\r\n\r\n", 431),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: gzip\r\n\r\n", 501),
        (post(length=1 << 40)[0], 413),
    ],
)
def test_what_is_not_http_or_too_large_is_answered_in_one_line(bands_served, sent, status):
    with bands_served.connect() as connection:
        connection.sendall(sent)
        found, answer = reply(connection)
        assert found == status
        assert "\n" not in answer["error"] and answer["error"]


@pytest.fixture(scope="module")
def bands_served(bands):
    with serving(bands) as served:
        yield served


def test_a_token_from_the_environment(bands):
    everywhere = ["--host", "0.0.0.0"]
    with serving(bands, *everywhere, RUNNER_TOKEN="sesame") as served, served.connect() as client:
        client.sendall(b"".join(post()))
        assert reply(client)[0] == 401


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--host", "0.0.0.0"], 2, "give --token"),
        (["--host", "::"], 2, "give --token"),
        (["--token", "a", "--no-token"], 2, "one of the two"),
        (["--token", " "], 2, "the token is empty"),
        (["--host", "no.such.host.invalid"], 4, "no such address here"),
        (["--host", "192.0.2.1", "--no-token"], 4, "cannot listen there"),
        (["--port", "70000"], 2, "no port"),
        (["--max-bytes", "0"], 2, "no number of bytes"),
    ],
)
def test_what_cannot_be_served_is_one_line(bands, options, code, words):
    done = runner(bands, "serve", *options)
    assert (done.code, done.stdout) == (code, "")
    assert words in done.stderr.splitlines()[-1]


def test_a_port_that_is_taken(bands):
    with socket.create_server(("127.0.0.1", 0)) as other:
        done = runner(bands, "serve", "--port", str(other.getsockname()[1]))
    assert done.code == 4
    assert done.stderr.count("\n") == 1 and "give another --port" in done.stderr


def test_unfinished_requests_take_no_more_than_some_memory(bands):
    """Thirty that have sent 3 of 4 MB each: the first ones are kept, the last ones let go."""
    sent, kept = 3_000_000, []
    with serving(bands) as served:
        connections = [served.connect() for _ in range(30)]
        for connection in connections:
            with suppress(OSError):
                connection.sendall(post(length=4_000_000)[0] + bytes(sent))
        assert json.loads(get(served))["status"] == "ok"
        for connection in connections:
            with suppress(OSError):
                connection.sendall(bytes(4_000_000 - sent))
                kept.append(reply(connection)[0])
            connection.close()
        assert 5 < len(kept) < 30 and set(kept) == {422}
        assert served.end() == 0


SCRIPTS = b"GET /page.js HTTP/1.1\r\n\r\n" * 300


def test_what_is_asked_at_once_is_answered_in_order(bands_served):
    script = get(bands_served, "page.js")
    with bands_served.connect() as connection, connection.makefile("rb") as answers:

        def following():
            assert answers.readline() == b"HTTP/1.1 200 OK\r\n"
            head = http.client.parse_headers(answers)
            return answers.read(int(head["Content-Length"]))

        connection.sendall(SCRIPTS + b"".join(post("bottom")))
        for _ in range(300):
            assert following() == script
        assert json.loads(following())["label"] == "bottom"


def test_who_reads_no_answer_is_let_go(bands):
    with serving(bands, changed=(1, 0)) as served:
        files = Path(f"/proc/{served.process.pid}/fd")
        before = len(list(files.iterdir()))
        with served.connect() as connection:
            connection.sendall(SCRIPTS * 4)  # more answers than a socket takes
            assert json.loads(get(served))["status"] == "ok"
            end = time.monotonic() + 30
            while len(list(files.iterdir())) > before:  # until the server has closed it
                assert time.monotonic() < end
                time.sleep(0.1)
        assert served.end() == 0


def test_systemd_is_told_how_it_is(bands, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told:
        told.bind(str(tmp_path / "n"))
        told.settimeout(60)
        with serving(bands, NOTIFY_SOCKET=str(tmp_path / "n")) as served:
            assert told.recv(100) == b"READY=1"
            assert told.recv(100) == b"WATCHDOG=1"
            assert served.end() == 0
        said = told.recv(100)
        while said == b"WATCHDOG=1":
            said = told.recv(100)
        assert said == b"STOPPING=1"


# --- many -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_thousand_connections_at_once(bands):
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 1200:
        pytest.skip(f"this process may open {hard} files only")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 1200), hard))
    with serving(bands) as served:
        labels = [list(BANDS)[i % 3] for i in range(1000)]
        connections = [served.connect() for _ in labels]
        for connection, label in zip(connections, labels, strict=True):
            head, body = post(label)
            connection.sendall(head + body[:-1])
        assert json.loads(get(served))["status"] == "ok"  # while a thousand are half sent
        for connection, label in zip(connections, labels, strict=True):
            connection.sendall(post(label)[1][-1:])
        answers = [reply(connection) for connection in connections]
        assert [(status, said["label"]) for status, said in answers] == [(200, n) for n in labels]
        for connection in connections:
            connection.close()
        assert served.end() == 0


@pytest.mark.slow
def test_memory_does_not_grow_over_20000_requests(bands):
    def resident():
        pages = Path(f"/proc/{served.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    picture = encoded("top", "image/png")
    with serving(bands) as served:
        connection = http.client.HTTPConnection("127.0.0.1", served.port)

        def ask(body, path="/predict?layers=1"):
            connection.request("POST", path, body, {"Content-Type": "image/png"})
            response = connection.getresponse()
            response.read()
            return response.status

        for _ in range(1000):
            ask(picture)
        before = resident()
        for i in range(20_000):
            assert ask(picture) == 200 if i % 2 else ask(b"no picture", f"/{i}") == 404
        assert resident() - before < 4 << 20
        connection.close()
        assert served.end() == 0


@pytest.mark.slow
def test_schemathesis_finds_nothing(bands_served, tmp_path):
    program = Path(sys.executable).with_name("schemathesis")
    if not program.exists():
        pytest.skip("there is no schemathesis: pip install schemathesis")
    # That a file is a picture is nothing a schema can say: not all that fits it is accepted.
    options = ["--exclude-checks", "positive_data_acceptance", "--max-examples", "200"]
    done = subprocess.run(
        [program, "run", bands_served.url + "openapi.json", *options, "--generation-deterministic"],
        cwd=tmp_path,  # it writes down what it found
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
