"""The WSGI application: what is served on which path, and what is said to bad requests."""

from __future__ import annotations

import hmac
import json
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from importlib.resources import files as resources
from typing import Any
from urllib.parse import parse_qs

from ..errors import BadInput, Missing
from . import metrics
from .classifier import RAW, Classifier

StartResponse = Callable[[str, list[tuple[str, str]]], Any]

JSON = "application/json"
PAGE = {  # path: (file, media type)
    "/": ("index.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
    "/openapi.json": ("openapi.json", JSON),
}
# To show and to run is what this server sends, and nothing else; pictures may be the page's own.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self' blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
ALWAYS = [
    ("Content-Security-Policy", POLICY),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("Cache-Control", "no-store"),
]
# What curl --data-binary says of anything, and a program that says nothing.
UNSAID = ("", "application/x-www-form-urlencoded")


class Refused(Exception):
    """A request is answered with this status and one line."""

    def __init__(self, status: HTTPStatus, message: str, *headers: tuple[str, str]) -> None:
        super().__init__(message)
        self.status, self.message, self.headers = status, message, headers


@dataclass(frozen=True)
class Response:
    """Status, media type, content and further headers."""

    status: HTTPStatus
    kind: str
    content: bytes
    headers: tuple[tuple[str, str], ...] = ()


def one_line(status: HTTPStatus, message: str, *headers: tuple[str, str]) -> Response:
    """The answer to a bad request."""
    return Response(status, JSON, _json({"error": " ".join(message.split())}), headers)


class Application:
    """`token` None lets everybody in; `max_bytes` is the longest body that is taken."""

    def __init__(self, classifier: Classifier, token: str | None, max_bytes: int) -> None:
        self._classifier = classifier
        self._token = token.encode() if token is not None else None
        self._max_bytes = max_bytes
        self._metrics = metrics.Metrics()
        page = resources(__package__) / "page"
        self._page = {
            path: Response(HTTPStatus.OK, kind, (page / name).read_bytes())
            for path, (name, kind) in PAGE.items()
        }

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
        """As PEP 3333 has it."""
        path = environ.get("PATH_INFO", "")
        try:
            response = self._respond(path, environ)
        except Refused as refused:
            response = one_line(refused.status, refused.message, *refused.headers)
        except Exception:  # a defect of ours: it is shown where the log is, and service goes on
            traceback.print_exc(file=sys.stderr)
            response = one_line(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed; see its log")
        known = path if path in self._page or path in ROUTES else "other"
        self._metrics.count(known, response.status)
        headers = [
            ("Content-Type", response.kind),
            ("Content-Length", str(len(response.content))),
            *response.headers,
            *ALWAYS,
        ]
        start_response(f"{response.status.value} {response.status.phrase}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [response.content]

    def _respond(self, path: str, environ: dict[str, Any]) -> Response:
        if path in self._page:
            _need_method(environ, "GET", "HEAD")
            return self._page[path]
        if path not in ROUTES:
            raise Refused(HTTPStatus.NOT_FOUND, "there is nothing here; see /openapi.json")
        method, protected, respond = ROUTES[path]
        _need_method(environ, *(("GET", "HEAD") if method == "GET" else (method,)))
        if protected:
            self._need_token(environ)
        return respond(self, environ)

    def _need_token(self, environ: dict[str, Any]) -> None:
        if self._token is None:
            return
        scheme, _, given = environ.get("HTTP_AUTHORIZATION", "").partition(" ")
        right = hmac.compare_digest(given.strip().encode("latin-1"), self._token)
        if scheme.lower() != "bearer" or not right:
            raise Refused(
                HTTPStatus.UNAUTHORIZED,
                "no token, or another one; send 'Authorization: Bearer TOKEN'",
                ("WWW-Authenticate", "Bearer"),
            )

    def health(self, environ: dict[str, Any]) -> Response:
        """GET /healthz."""
        del environ
        return Response(HTTPStatus.OK, JSON, _json({"status": "ok"} | self._classifier.describe()))

    def measured(self, environ: dict[str, Any]) -> Response:
        """GET /metrics."""
        del environ
        return Response(HTTPStatus.OK, metrics.KIND, self._metrics.text().encode())

    def predict(self, environ: dict[str, Any]) -> Response:
        """POST /predict: a picture is the body; `?layers=1` asks for what the layers leave, too."""
        kind = environ.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        if not (kind.startswith("image/") or kind in UNSAID or kind == RAW):
            raise Refused(
                HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
                f"{kind} is no picture; send image/png, image/jpeg, a PGM, or {RAW}",
            )
        length = int(environ.get("CONTENT_LENGTH") or 0)
        if length > self._max_bytes:
            raise Refused(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, too_large(self._max_bytes))
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
        asked = query.get("layers", ["0"])
        if asked not in (["0"], ["1"]):
            raise Refused(HTTPStatus.BAD_REQUEST, "layers is 0 or 1, once")
        content = environ["wsgi.input"].read(length)
        try:
            answer = self._classifier.answer(content, kind, asked == ["1"])
        except Missing as error:
            raise Refused(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, str(error)) from error
        except BadInput as error:
            raise Refused(HTTPStatus.UNPROCESSABLE_ENTITY, str(error)) from error
        self._metrics.time(answer.seconds)
        return Response(HTTPStatus.OK, JSON, _json(answer.document))


# Path: (method, whether the token is needed, what answers).
ROUTES: dict[str, tuple[str, bool, Callable[[Application, dict[str, Any]], Response]]] = {
    "/predict": ("POST", True, Application.predict),
    "/healthz": ("GET", False, Application.health),
    "/metrics": ("GET", True, Application.measured),
}


def too_large(max_bytes: int) -> str:
    """What is said to a body that is longer."""
    return f"the body is longer than {max_bytes} bytes; send a smaller picture"


def _need_method(environ: dict[str, Any], *allowed: str) -> None:
    if environ["REQUEST_METHOD"] not in allowed:
        raise Refused(
            HTTPStatus.METHOD_NOT_ALLOWED,
            f"this path takes {' and '.join(allowed)}",
            ("Allow", ", ".join(allowed)),
        )


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document) + "\n").encode()
