"""waitress around the application: limits, slow senders, and an end that loses no request."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import time
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask

from .application import ALWAYS, Application, one_line, too_large

CONNECTIONS = 1500
SILENCE = 30  # seconds without a byte, from the client or taken by it, that end a connection
PATIENCE = 60  # seconds in which a request must have been sent
GRACE = 20  # seconds for the requests that are there when the end comes
HELD = 64 << 20  # bytes of unfinished requests, all together: beyond it the newest are let go


class OneLine(ErrorTask):  # type: ignore[misc]
    """What waitress itself refuses, in the application's form."""

    def execute(self) -> None:
        """Answer, and close the connection."""
        error = self.request.error
        message = error.body if error.code != 413 else too_large(self.channel.adj.max_bytes)
        response = one_line(HTTPStatus(error.code), message)
        self.status = f"{response.status.value} {response.status.phrase}"
        self.response_headers += [("Content-Type", response.kind), *ALWAYS]
        self.set_close_on_finish()
        self.content_length = len(response.content)
        self.write(response.content)


class Channel(HTTPChannel):  # type: ignore[misc]
    """A connection that knows since when the present request is being sent."""

    error_task_class = OneLine
    began: float | None = None

    def received(self, data: bytes) -> bool:
        """As in waitress."""
        if self.request is None:
            self.began = time.monotonic()
        taken: bool = super().received(data)
        if self.request is None:
            self.began = None
        return taken

    @property
    def busy(self) -> bool:
        """Whether a request is being received, answered, or its answer being sent."""
        return bool(self.requests or self.request is not None or self.total_outbufs_len)


class Tasks:
    """What is to be answered, in the order in which it came, by the thread that reads and sends.

    One picture at a time is classified anyway. A second thread that sends makes waitress' loop turn
    without a pause until it has done so, and the loop, which lets go of Python's lock only for
    moments, keeps it from it: 8 clients got 130 answers a second where one got 1,900.
    """

    def __init__(self) -> None:
        self._waiting: deque[HTTPChannel] = deque()

    def add_task(self, channel: HTTPChannel) -> None:
        """Called by waitress when a whole request is there."""
        self._waiting.append(channel)

    def __len__(self) -> int:
        return len(self._waiting)

    def do_one(self) -> None:
        """Answer the oldest request, if there is one."""
        if self._waiting:
            self._waiting.popleft().service()


class Server:
    """Listens from the moment it is made. Port 0 is any free one."""

    def __init__(self, application: Application, listening: socket.socket, max_bytes: int) -> None:
        logging.getLogger("waitress").setLevel(logging.ERROR)
        self._map: dict[int, Any] = {}
        self._tasks = Tasks()
        self._server = create_server(
            application,
            map=self._map,
            sockets=[listening],
            _dispatcher=self._tasks,
            connection_limit=_connections(),
            max_request_body_size=max_bytes + 1,
            inbuf_overflow=max_bytes + 1,  # no temporary files: SD cards wear out
            max_request_header_size=16384,
            ident=None,
            log_socket_errors=False,
        )
        self._server.adj.max_bytes = max_bytes
        self._server.channel_class = Channel
        self._most = max(HELD, 2 * max_bytes)
        self._ending = False

    def run(self, on_start: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT; then finish what was begun, for GRACE seconds at most."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        notify("READY=1")
        on_start()
        while not self._ending:
            self._turn(1)
            notify("WATCHDOG=1")
        notify("STOPPING=1")
        self._turn(0)  # those that were connected when the signal came
        self._server.del_channel(self._map)
        self._server.socket.close()
        end = time.monotonic() + GRACE
        while self._busy() and time.monotonic() < end:
            self._turn(0.1)
        wasyncore.close_all(self._map)

    def _end(self, *_: object) -> None:
        self._ending = True
        self._server.pull_trigger()  # a signal alone does not wake what waits for sockets

    def _busy(self) -> bool:
        return any(channel.busy for channel in self._server.active_channels.values())

    def _turn(self, timeout: float) -> None:
        """Read and send what can be within `timeout` seconds, then answer one request."""
        wait = 0 if self._tasks else timeout
        wasyncore.loop(timeout=wait, use_poll=True, map=self._map, count=1)
        self._tasks.do_one()
        latest = time.monotonic() - PATIENCE
        silent = time.time() - SILENCE
        held = 0
        for channel in list(self._server.active_channels.values()):
            clients_turn = bool(channel.total_outbufs_len or not channel.requests)
            if channel.last_activity < silent and clients_turn:
                channel.handle_close()  # waitress itself would wait until the client reads
            elif channel.request is not None and channel.began is not None:
                received = channel.request.body_bytes_received
                if held + received > self._most or channel.began < latest:
                    channel.handle_close()
                else:
                    held += received


def _connections() -> int:
    """How many there may be; files are made room for where the limit is only the soft one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = CONNECTIONS + 100
    if soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return min(CONNECTIONS, soft - 100)


def notify(state: str) -> None:
    """Tell systemd, where it asked to be told (sd_notify(3))."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(state.encode(), f"\0{address[1:]}" if address[0] == "@" else address)
