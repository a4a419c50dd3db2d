"""serve: what a worker process does, told by its parent over a pipe."""

from __future__ import annotations

import os
import pickle
import threading
from dataclasses import replace
from multiprocessing.connection import Connection

from medsr.io import set_cache_limit
from medsr.shards import Task
from medsr.streaming import Line, open_scan

__all__ = ["serve"]


def serve(connection: Connection, number: int, threads: int, cache_bytes: int) -> None:
    """What a process does: fill the shards it is told of, until it is told to stop or its parent is gone."""
    import signal

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    set_cache_limit(cache_bytes)
    torch.set_num_threads(threads)
    speaking = threading.Lock()

    def send(task: Task | None, result: str | BaseException | None) -> None:
        with speaking:
            connection.send((task, _portable(result)))

    line: Line | None = None
    while True:
        try:
            kind, content = connection.recv()
        except (EOFError, OSError):
            os._exit(1)  # the parent is gone; nobody waits for what is under way
        if kind == "job":
            job = replace(content, device=_own_device(content.device, number))
            try:
                line = Line(job, open_scan(job), done=send, note=lambda said: send(None, said))
            except Exception as error:  # noqa: BLE001 - the parent raises it
                send(None, error)
        elif kind == "task" and line is not None:
            line.put(content)
        elif kind == "end":
            if line is not None:
                line.close(drop=True)
            line = None
            send(None, None)
        elif kind == "stop":
            return


def _own_device(device: str, number: int) -> str:
    """The GPU of a worker, in turn, where a machine has several and none is named."""
    import torch

    if device in ("auto", "cuda") and torch.cuda.device_count() > 1:
        return f"cuda:{number % torch.cuda.device_count()}"
    return device


def _portable(result: str | BaseException | None) -> str | BaseException | None:
    """An error as it is if it can be sent, else one with its words."""
    if not isinstance(result, BaseException):
        return result
    try:
        pickle.loads(pickle.dumps(result))  # noqa: S301 - our own object, to see whether it survives
    except Exception:  # noqa: BLE001 - whatever a foreign exception class does when pickled
        return RuntimeError(f"{type(result).__name__}: {result}")
    return result
