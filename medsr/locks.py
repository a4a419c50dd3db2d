"""lock, turn: one process at a time at a folder (POSIX)."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

__all__ = ["TakenError", "lock", "lock_shared", "release", "turn"]


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""What a file system says that has no locks."""


class TakenError(ValueError):
    """Another process is at it."""


def lock_shared(stream: IO[str], owned: Path, *, patience_s: float = 30.0) -> None:
    """Hold a file beside others that do so too; one that has it for itself alone is waited for, for a while.

    Raises:
        TakenError: it is not given up; the file is closed.
    """
    deadline = time.monotonic() + patience_s
    while True:
        try:
            lock(stream, owned, shared=True, keep_open=True)
        except TakenError:
            if time.monotonic() > deadline:
                stream.close()
                raise
            time.sleep(0.1)
        else:
            return


def lock(stream: IO[str], owned: Path, *, shared: bool = False, keep_open: bool = False) -> None:
    """Hold a file for this process until it is closed or the process ends (POSIX; elsewhere no lock).

    `shared` holds beside others that do so too. A file system without locks gives none: what is written there is safe
    without them, twice the work at worst.

    Raises:
        TakenError: another process holds it; the file is closed unless `keep_open`. `owned` is what the message
            names.
    """
    try:
        import fcntl
    except ImportError:
        return
    try:
        fcntl.flock(stream, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in NO_LOCKS:
            return
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise
        if not keep_open:
            stream.close()
        raise TakenError(f"{owned}: another process is writing here; wait for it or use another --out") from None


def release(stream: IO[str]) -> None:
    """Give up what is held and close the file.

    Closing alone is not enough: a process that was just started from another thread has the file too, until it becomes
    another program, and would go on holding it.
    """
    if stream.closed:
        return
    with suppress(ImportError, OSError):
        import fcntl

        fcntl.flock(stream, fcntl.LOCK_UN)
    stream.close()


@contextmanager
def turn(path: Path) -> Iterator[None]:
    """One process at a time inside, the others wait (POSIX)."""
    with path.open("a") as stream:
        try:
            import fcntl

            fcntl.flock(stream, fcntl.LOCK_EX)
        except (ImportError, OSError):
            pass
        yield
