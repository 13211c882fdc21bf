"""The one exception that means "the user can mend this", and what tells a full memory or disk from other errors."""

import errno

# Of a file that cannot be written, through no fault of what is written.
_NOT_WRITABLE = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EFBIG,
    errno.EACCES,
    errno.EPERM,
    errno.EROFS,
    errno.EIO,
    errno.EEXIST,  # a file is where a folder is to be made
    errno.ENOTDIR,
    errno.EISDIR,
)
# The same, in the words of libraries that keep no number (Orbax's writer, HDF5).
_NOT_WRITABLE_WORDS = (
    "No space left on device",
    "Disk quota exceeded",
    "File too large",
    "Permission denied",
    "Read-only file system",
)


class UserError(ValueError):
    """Bad input: the message names the file, field or value at fault and says what would be right.

    The command line prints the message alone, without a traceback, and exits with status 2.
    """


class FailedElsewhere(UserError):
    """One of several processes that work as one has failed and told the others, so that all end as they would alone."""


class ProcessLost(UserError):
    """One of several processes that work as one is gone; nothing that needs all of them can be ended properly.

    Closing JAX's connection, as Python does when it exits, waits for the lost process: `os._exit` does not.
    """


def out_of_memory(error: BaseException) -> bool:
    """Whether the memory of the host or of a device is what an error is about."""
    if isinstance(error, MemoryError):
        return True
    # Known by its name: this module is imported where JAX may be missing.
    of_jax = any(kind.__name__ in ("JaxRuntimeError", "XlaRuntimeError") for kind in type(error).__mro__)
    return of_jax and ("RESOURCE_EXHAUSTED" in str(error) or "out of memory" in str(error).lower())


def why_not_writable(error: BaseException) -> str | None:
    """Why a file could not be written, in a few words, if that is what an error is about: disk full, no permission."""
    if isinstance(error, OSError) and error.errno in _NOT_WRITABLE:
        return error.strerror + (f": {error.filename}" if error.filename else "")
    # Libraries wrap the error that a disk gave them, or chain theirs to it.
    found = [words for words in _NOT_WRITABLE_WORDS if words in str(error)]
    return found[0] if found else None
