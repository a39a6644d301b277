"""`runner serve` on loopback: requests a second, latency and memory, by request and clients.

The clients run on the same processors, in one thread (several would contend for Python's lock and
measure that): what it says is the least that the server does.
With `--soak` it asks for that many answers to one input and prints the memory after every tenth.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import re
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import numpy as np
from PIL import Image

CLIENTS = (1, 8, 64)


def requests_of(shape: list[int]) -> dict[str, tuple[str, str, str, bytes]]:
    """By name: method, path, media type, body."""
    random = np.random.default_rng(0)
    ink = np.full((280, 280), 255, np.uint8)
    ink[60:80, 80:200] = ink[60:220, 180:200] = 0
    png = io.BytesIO()
    Image.fromarray(ink).save(png, "png")
    ppm = b"P6 280 280 255\n" + np.repeat(ink[:, :, None], 3, axis=2).tobytes()
    raw = random.integers(0, 256, shape, np.uint8).tobytes()
    return {
        "/healthz": ("GET", "/healthz", "", b""),
        "raw input": ("POST", "/predict", "application/octet-stream", raw),
        "PNG 280 x 280": ("POST", "/predict", "image/png", png.getvalue()),
        "the page's": ("POST", "/predict?layers=1", "image/x-portable-pixmap", ppm),
    }


def load(
    port: int, asked: tuple[str, str, str, bytes], clients: int, count: int
) -> tuple[float, list[float]]:
    """Requests a second, and each one's milliseconds. Any answer but 200 ends the program."""
    method, path, kind, body = asked
    head = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(body)}"]
    head += [f"Content-Type: {kind}"] if kind else []
    request = "\r\n".join([*head, "", ""]).encode() + body
    times: list[float] = []

    async def client() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for _ in range(max(1, count // clients)):
            begin = time.perf_counter()
            writer.write(request)
            answer = await reader.readuntil(b"\r\n\r\n")
            await reader.readexactly(int(re.findall(rb"(?i)\ncontent-length: (\d+)", answer)[0]))
            times.append((time.perf_counter() - begin) * 1000)
            if answer.split()[1] != b"200":
                sys.exit(f"{path}: answered {answer.split()[1].decode()}")
        writer.close()
        await writer.wait_closed()

    async def all_clients() -> None:
        await asyncio.gather(*(client() for _ in range(clients)))

    begin = time.perf_counter()
    asyncio.run(all_clients())
    return len(times) / (time.perf_counter() - begin), times


def memory_mb(process: int, which: str) -> float:
    """Resident memory of a process (proc(5)): VmRSS, or VmHWM, the greatest so far."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(which)) / 1024


def soak(port: int, process: int, asked: tuple[str, str, str, bytes], count: int) -> None:
    """Ask `count` times in all, by several clients, and print what memory the server has."""
    print(f"{'requests':>10}{'requests/s':>12}{'p99 ms':>9}{'MB':>8}{'peak MB':>9}")
    for part in range(1, 11):
        rate, times = load(port, asked, CLIENTS[1], count // 10)
        now, peak = (memory_mb(process, which) for which in ("VmRSS", "VmHWM"))
        p99 = np.percentile(times, 99)
        done = part * (count // 10)
        print(f"{done:10,}{rate:12.0f}{p99:9.1f}{now:8.1f}{peak:9.1f}", flush=True)


def table(
    port: int, process: int, asked: dict[str, tuple[str, str, str, bytes]], count: int
) -> None:
    """One row for each request and number of clients."""
    print(f"{'asked':16}{'clients':>8}{'requests/s':>12}{'p50 ms':>9}{'p99 ms':>9}{'peak MB':>9}")
    for name, request in asked.items():
        for clients in CLIENTS:
            rate, times = load(port, request, clients, count)
            p50, p99 = np.percentile(times, [50, 99])
            memory = memory_mb(process, "VmHWM")
            print(f"{name:16}{clients:8}{rate:12.0f}{p50:9.1f}{p99:9.1f}{memory:9.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path, help="an unpacked bundle")
    parser.add_argument("--count", type=int, default=2000, help="requests each (default 2000)")
    parser.add_argument("--soak", type=int, metavar="COUNT", help="one input, so many times")
    args = parser.parse_args()
    command = [sys.executable, str(args.bundle / "runner.pyz"), "serve", "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        line = server.stdout.readline()
        if not line:
            sys.exit("the server did not start")
        port = int(json.loads(line)["url"].rstrip("/").rpartition(":")[2])
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz") as answer:
                health = json.load(answer)
            print(f"{health['model']} {health['precision']}, {health['runtime']}")
            asked = requests_of(health["input_shape"])
            if args.soak:
                soak(port, server.pid, asked["raw input"], args.soak)
            else:
                table(port, server.pid, asked, args.count)
        finally:
            server.terminate()
        if server.wait() != 0:
            sys.exit(f"the server ended with {server.returncode}")


if __name__ == "__main__":
    main()
