"""Training in several processes that torchrun started: who this one is, and what they share.

The first process alone reads and writes the run and talks to the person; the others compute.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import Tensor, distributed, nn
from torch._C._distributed_c10d import TCPStore

from .errors import Interrupted, Missing

PATIENCE = timedelta(minutes=10)  # with a process that neither answers nor ends
LOST = "a process of this training was killed or lost"

Value = TypeVar("Value")


class WorkerLost(Interrupted):
    """torchrun ends this process, as it does with all when one has ended badly."""


@dataclass(frozen=True)
class Workers:
    """One process among `count`, the `local_rank`-th of its machine; by default it is alone."""

    rank: int = 0
    count: int = 1
    local_rank: int = 0
    grouped: bool = False  # whether torchrun started it, be it alone

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def share(self, batch: Tensor) -> tuple[Tensor, int]:
        """The process's own part of a batch, and how many others' that stands for, itself included.

        Where some part would have fewer than two images, which batch normalization needs,
        everybody computes the whole batch.
        """
        if self.count == 1 or len(batch) < 2 * self.count:
            return batch, 1
        return batch[self.rank :: self.count], self.count

    def parallel(self, network: nn.Module) -> nn.Module:
        """The network whose gradients are means over all processes, from the first one's weights.

        Statistics of batch normalization are the first process's.
        """
        return nn.parallel.DistributedDataParallel(network) if self.grouped else network

    def mean(self, values: Tensor) -> Tensor:
        """The mean over all processes, the same everywhere."""
        if self.grouped:
            values = values.clone()
            distributed.all_reduce(values)
            values /= self.count
        return values

    def broadcast(self, value: Value | None) -> Value:
        """What the first process gives, everywhere."""
        values: list[Any] = [value]
        if self.grouped:
            distributed.broadcast_object_list(values, device=torch.device("cpu"))
        given: Value = values[0]
        return given

    def in_turn(self, work: Callable[[], Value]) -> Value:
        """`work` by the first process of each machine, then by the others: one downloads."""
        if not self.grouped:
            return work()
        value = work() if self.local_rank == 0 else None
        distributed.barrier()
        return work() if value is None else value


ALONE = Workers()


def under_torchrun() -> bool:
    """Whether torchrun started this process."""
    return "TORCHELASTIC_RUN_ID" in os.environ


def peer_is_lost(error: RuntimeError) -> bool:
    """Whether a collective failed because another process does not answer."""
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


@contextmanager
def joined(cuda: bool) -> Iterator[Workers]:
    """The processes that torchrun started with this one; without torchrun this one alone.

    `cuda` is whether they may use such devices. Raises Missing where a machine has fewer of them
    than processes, and Interrupted when one of these is lost.
    """
    if not under_torchrun():
        yield ALONE
        return
    rank, count, local_rank, here = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    devices = torch.cuda.device_count() if cuda else 0
    if devices:
        if here > devices:
            raise Missing(
                f"{here} processes and {devices} CUDA devices on this machine",
                f"give torchrun --nproc-per-node {devices}, or --device cpu",
            )
        torch.cuda.set_device(local_rank)
    signal.signal(signal.SIGTERM, _end)
    try:
        backend = "cpu:gloo,cuda:nccl" if devices else "gloo"
        distributed.init_process_group(backend, timeout=PATIENCE)
        yield Workers(rank, count, local_rank, grouped=True)
        distributed.destroy_process_group()
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # the error is still to be told
        if isinstance(error, RuntimeError) and peer_is_lost(error):
            raise Interrupted(LOST, "start it again") from error
        raise
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _end(*_: object) -> None:
    raise WorkerLost(LOST, "start it again")


def first_to_tell() -> bool:
    """Whether no other process has told the person that something is wrong: one message a job."""
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    try:
        store = TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=5),
        )
        return store.add(f"pipeline/told/{attempt}", 1) == 1
    except distributed.DistError:  # its host has ended: better twice than never
        return True
