"""The command `serve`: a page on which one draws, and the same answers for programs."""

from __future__ import annotations

import argparse
import ipaddress
import json
import os
import socket

from ..backends import Model
from ..errors import Missing, UsageError

TOKEN = "RUNNER_TOKEN"
MAX_BYTES = 4 << 20


def add_options(command: argparse.ArgumentParser) -> None:
    """What `serve` takes besides what all commands take."""
    command.add_argument("--host", default="127.0.0.1", help="where to listen (default 127.0.0.1)")
    command.add_argument("--port", type=_port, default=8080, help="default 8080; 0 is any free one")
    command.add_argument("--token", help=f"what a client must know (default: ${TOKEN})")
    command.add_argument("--no-token", action="store_true", help="let the whole network in")
    command.add_argument(
        "--max-bytes",
        type=_bytes,
        default=MAX_BYTES,
        help=f"longest picture file (default {MAX_BYTES})",
    )


def run(args: argparse.Namespace, model: Model) -> int:
    """Serve until a signal ends it. Raises UsageError or Missing before it has begun."""
    token = args.token if args.token is not None else os.environ.get(TOKEN)
    if args.no_token and args.token is not None:
        raise UsageError("--token and --no-token", "give one of the two")
    token = None if args.no_token else token
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise UsageError("the token is empty or has other than ASCII characters", "choose another")
    family, address = _address(args.host, args.port)
    if token is None and not args.no_token and not ipaddress.ip_address(address[0]).is_loopback:
        raise UsageError(
            f"{args.host} lets the whole network in, without a token",
            f"give --token, or set {TOKEN}, or give --no-token",
        )
    # Here, so that the other commands need not read waitress from the SD card.
    from .application import Application
    from .classifier import Classifier
    from .server import Server

    classifier = Classifier(model)
    with _listening(family, address) as listening:
        host, port = listening.getsockname()[:2]
        url = f"http://{f'[{host}]' if ':' in host else host}:{port}/"

        def on_start() -> None:
            said = json.dumps({"url": url, "runtime": model.runtime})
            print(said if args.json else f"serving with {model.runtime}: {url}", flush=True)

        application = Application(classifier, token, args.max_bytes)
        Server(application, listening, args.max_bytes).run(classifier, on_start)
    return 0


def _address(host: str, port: int) -> tuple[int, tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise Missing(f"--host {host}: no such address here", "give 127.0.0.1") from error
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1]))


def _listening(family: int, address: tuple[str, int]) -> socket.socket:
    try:
        return socket.create_server(address, family=family, backlog=1024)
    except OSError as error:
        where = f"{address[0]}, port {address[1]}"
        raise Missing(
            f"{where}: cannot listen there ({os.strerror(error.errno or 0)})",
            "give another --port or --host",
        ) from error


def _port(text: str) -> int:
    if not text.isdigit() or int(text) > 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is no port, 0 to 65535")
    return int(text)


def _bytes(text: str) -> int:
    if not text.isdigit() or not 1 <= int(text) <= 1 << 30:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of bytes, 1 to {1 << 30}")
    return int(text)
