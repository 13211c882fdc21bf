"""One process at a time trains in a run folder."""

import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from llmdpd_jax.errors import UserError
from llmdpd_jax.parallel import any_process, is_leader

LOCK_FILE = "lock"
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)  # of a file system that has none


@contextlib.contextmanager
def run_lock(run: Path) -> Iterator[None]:
    """Holds the lock of a run folder, which exists. Of several processes that work as one the leader holds it for all.

    The kernel frees it when the process ends, in whatever way; what the file says of a process that is gone means
    nothing. Reading a run takes no lock.

    Raises:
      UserError: another process trains there; the message names its host and process.
    """
    with contextlib.ExitStack() as stack:
        free = True
        if is_leader():
            # Opened for appending: until the lock is held, what is written there is another process's.
            file = stack.enter_context((run / LOCK_FILE).open("a", encoding="utf-8"))
            free = _take(file, fcntl.LOCK_EX)
            if free:
                file.truncate(0)
                file.write(f"host {socket.gethostname()}, process {os.getpid()}\n")
                file.flush()
        _refuse_unless(free, run)
        yield


def check_unlocked(run: Path) -> None:
    """Raises the UserError of `run_lock` if a process trains in the folder, which may not exist. Writes nothing."""
    free = True
    if is_leader() and (run / LOCK_FILE).exists():
        with (run / LOCK_FILE).open(encoding="utf-8") as file:
            free = _take(file, fcntl.LOCK_SH)
    _refuse_unless(free, run)


def _take(file: TextIO, kind: int) -> bool:
    """Takes the lock of a file if no other process holds it; where the file system has no locks, nobody does."""
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
    return True


def _refuse_unless(free: bool, run: Path) -> None:
    """Raises in all processes that work as one if the lock is not free."""
    if any_process(not free):
        holder = (run / LOCK_FILE).read_text(encoding="utf-8").strip()
        raise UserError(f"{run}: another process trains there ({holder}); wait until it has ended, or end it")
