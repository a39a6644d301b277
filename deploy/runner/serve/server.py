"""waitress around the application: limits, slow senders, and an end that loses no request."""

from __future__ import annotations

import logging
import os
import resource
import signal
import socket
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from waitress import wasyncore
from waitress.channel import HTTPChannel
from waitress.server import create_server
from waitress.task import ErrorTask

from .application import ALWAYS, Application, one_line, too_large
from .classifier import Classifier

THREADS = 1  # one picture at a time is classified anyway
CONNECTIONS = 1500
SILENCE = 30  # seconds without a byte, from the client or taken by it, that end a connection
PATIENCE = 60  # seconds in which a request must have been sent
GRACE = 20  # seconds for the requests that are there when the end comes
HELD = 64 << 20  # bytes of requests, all together: beyond it the newest unfinished are let go
STUCK = 60  # seconds for one picture after which the watchdog is no longer told that all is well


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
    began = 0.0

    def received(self, data: bytes) -> bool:
        """As in waitress."""
        before = self.request
        taken: bool = super().received(data)
        if self.request is not before:
            self.began = time.monotonic()
        return taken

    def write_soon(self, data: bytes) -> int:
        """As in waitress; a client's silence begins when there is something for it to take."""
        if not self.total_outbufs_len:
            self.last_activity = time.time()
        written: int = super().write_soon(data)
        return written

    def writable(self) -> bool:
        """As in waitress, but for what the worker is about to send itself.

        For that the loop would turn without a pause, let go of Python's lock only for moments, and
        so keep the worker from it: on two cores 8 clients had 130 answers of /healthz a second.
        """
        if not super().writable():
            return False
        free: bool = self.outbuf_lock.acquire(blocking=False)
        if free:
            self.outbuf_lock.release()
        return free

    @property
    def busy(self) -> bool:
        """Whether a request is being received, answered, or its answer being sent."""
        return bool(self.requests or self.request is not None or self.total_outbufs_len)


class Server:
    """Listens from the moment it is made. Port 0 is any free one."""

    def __init__(self, application: Application, listening: socket.socket, max_bytes: int) -> None:
        logging.getLogger("waitress").setLevel(logging.ERROR)
        self._map: dict[int, Any] = {}
        self._server = create_server(
            application,
            map=self._map,
            sockets=[listening],
            threads=THREADS,
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

    def run(self, classifier: Classifier, on_start: Callable[[], None]) -> None:
        """Serve until SIGTERM or SIGINT; then finish what was begun, for GRACE seconds at most."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        notify("READY=1")
        on_start()
        told = 0.0
        while not self._ending:
            self._turn(1)
            if time.monotonic() - told > 1 and classifier.seconds_busy() < STUCK:
                notify("WATCHDOG=1")
                told = time.monotonic()
        notify("STOPPING=1")
        end = time.monotonic() + GRACE
        come = True
        while come and time.monotonic() < end:  # those that were connected when the signal came
            known = self._channels()
            self._turn(0)
            come = not set(self._channels()).issubset(known)
        self._server.del_channel(self._map)
        self._server.socket.close()
        while self._channels() and time.monotonic() < end:
            idle = [channel for channel in self._channels() if not channel.busy]
            self._turn(0)  # reads what they had sent by then
            for channel in idle:
                if not channel.busy:  # else it would go on to ask
                    channel.handle_close()
            self._turn(0.1)
        self._server.task_dispatcher.shutdown()
        wasyncore.close_all(self._map)

    def _end(self, *_: object) -> None:
        self._ending = True
        self._server.pull_trigger()  # a signal alone does not wake what waits for sockets

    def _channels(self) -> list[Channel]:
        return list(self._server.active_channels.values())

    def _turn(self, timeout: float) -> None:
        wasyncore.loop(timeout=timeout, use_poll=True, map=self._map, count=1)
        now, silent = time.monotonic(), time.time() - SILENCE
        whole = (request for channel in self._channels() for request in list(channel.requests))
        held = sum(request.body_bytes_received for request in whole)
        for channel in self._channels():
            waits_for_us = channel.requests and not channel.total_outbufs_len
            if channel.last_activity < silent and not waits_for_us:
                channel.handle_close()  # waitress' own timeout waits until the client reads
            elif channel.request is not None:
                if not channel.readable():
                    channel.began = now  # it is not being read from
                received = channel.request.body_bytes_received
                if held + received > self._most or channel.began < now - PATIENCE:
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
