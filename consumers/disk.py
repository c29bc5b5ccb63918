"""Whether the snapshot folder is writable and has enough free space."""

import os
import tempfile
from pathlib import Path

from model_store.snapshots import Snapshots
from stream.errors import CounterflowError

LEAST = 1 << 30  # bytes that must be free in any case
BESIDE = 2  # snapshots that must fit beside the kept ones: the draft, and room for growth
MIB = 1 << 20


def check(folder: str) -> str:
    """Return the folder and its free space in words; raise CounterflowError if it is unusable."""
    at = Path(folder)
    while not os.path.lexists(at):
        at = at.parent
    try:
        with tempfile.TemporaryFile(dir=at) as file:
            file.write(b"counterflow")
            file.flush()
            os.fsync(file.fileno())
        found = Snapshots(folder).list()
        told = os.statvfs(at)
    except OSError as error:
        raise CounterflowError(
            f"{at} cannot be written: {error.strerror or error}",
            "make it writable for this user, or choose another snapshots.dir",
        ) from error
    free = told.f_bavail * told.f_frsize
    needed = max(LEAST, BESIDE * max((snapshot.bytes for snapshot in found), default=0))
    if free < needed:
        raise CounterflowError(
            f"{folder} has {free / MIB:.0f} MiB free, but snapshots need {needed / MIB:.0f} MiB",
            "free disk space, or choose another snapshots.dir",
        )
    if told.f_files and not told.f_favail:
        raise CounterflowError(f"{folder} has no free inodes", "remove files from its file system")
    return f"{folder}, {free // MIB} MiB free"
