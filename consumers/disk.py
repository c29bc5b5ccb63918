"""Whether the folder of snapshots can take them: it is written to, and its free space is read."""

import os
import tempfile
from pathlib import Path

from model_store.snapshots import Snapshots
from stream.errors import CounterflowError

LEAST = 1 << 30  # bytes
BESIDE = 2  # times the largest snapshot: the draft beside those kept, and what the model grows by
MIB = 1 << 20


def check(folder: str) -> str:
    """Return what is free in words; CounterflowError where snapshots would not be taken."""
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
            f"{folder} has {free / MIB:.0f} MiB free, and snapshots need {needed / MIB:.0f}",
            "free disk space, or choose another snapshots.dir",
        )
    if told.f_files and not told.f_favail:
        raise CounterflowError(
            f"{folder} has no room for another file", "remove files there: its inodes are used up"
        )
    return f"{folder}, {free // MIB} MiB free"
