"""Snapshots on disk: the trainer's whole state in one atomic unit.

    DIR/lock                     held by the one process that writes (flock)
    DIR/epoch                    the last claimed epoch
    DIR/snapshot-000000000042/   state.safetensors and manifest.json, with checksums
    DIR/draft-…                  one being written or removed; the next save removes leftovers
    DIR/aside-000001/            snapshots set aside by --from-earliest; never removed

A snapshot is written as a draft, synced to disk and renamed, and then the folder is synced. So a
snapshot with its final name is complete, even after a power failure. The format has no pickle:
reading a snapshot executes no code.
"""

import fcntl
import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import numpy as np
import numpy.typing as npt
import orjson
import safetensors.numpy
from safetensors import SafetensorError

from stream.errors import Inconsistent, Unavailable

State = dict[str, npt.NDArray[Any]]

FORMAT: Final = 1
STATE: Final = "state.safetensors"
MANIFEST: Final = "manifest.json"
_NAME: Final = re.compile(r"snapshot-([0-9]{12})\Z")
_ASIDE: Final = re.compile(r"aside-([0-9]{6})\Z")
_DRAFT: Final = re.compile(r"draft-([0-9]{12}|old-[0-9]{12}|epoch)\Z")  # leftovers we may remove
ELSE_AFRESH: Final = (
    "counterflow train --from-earliest learns all of Kafka's log again and sets the old snapshots"
    " aside"
)
_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """One snapshot on disk; `damage` says what is wrong with it, empty if nothing is."""

    path: Path
    number: int
    created_ms: int
    bytes: int
    meta: dict[str, Any]
    damage: str = ""


Found = list[Snapshot]


class Whole(NamedTuple):
    """A snapshot that was read and matches its manifest."""

    state: State
    meta: dict[str, Any]
    path: Path


class Damaged(Exception):
    """A snapshot does not match its manifest."""


class Foreign(Exception):
    """A snapshot may be intact, but its format is not this version's."""


class _File(msgspec.Struct, frozen=True):
    bytes: int
    sha256: str


class _Manifest(msgspec.Struct, frozen=True):
    """The required content of a manifest of this format."""

    number: int
    created_ms: int
    files: dict[str, _File]
    meta: dict[str, Any]


class Snapshots:
    """The snapshot folder of one trainer; reading needs no lock, the first write takes it.

    Parameters
    ----------
    directory : path
        The folder; created by the first write.
    keep : int
        Number of snapshots to keep.
    clock : callable
        Unix time in seconds.
    """

    def __init__(
        self, directory: str | Path, keep: int = 3, clock: Callable[[], float] = time.time
    ) -> None:
        if keep < 1:
            raise Inconsistent(f"snapshots.keep = {keep} is too small", "keep at least one")
        self.directory = Path(directory)
        self._keep = keep
        self._clock = clock
        self._held: int | None = None

    def __enter__(self) -> "Snapshots":
        self.lock()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def lock(self) -> None:
        """Take the folder's lock; raise Inconsistent if another process holds it."""
        if self._held is not None:
            return
        with _mapped(self.directory):
            _make(self.directory)
            handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as exc:
            owner = os.pread(handle, 32, 0).decode(errors="replace").strip() or "unknown"
            os.close(handle)
            raise Inconsistent(
                f"another process ({owner}) writes snapshots in {self.directory}",
                "stop it, or give this one a folder of its own (COUNTERFLOW_SNAPSHOTS__DIR)",
            ) from exc
        self._held = handle
        with _mapped(self.directory):
            os.ftruncate(handle, 0)
            os.pwrite(handle, b"%d\n" % os.getpid(), 0)

    def in_use(self) -> bool:
        """Return whether a process holds the lock, without taking it."""
        try:
            handle = os.open(self.directory / "lock", os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return True
        finally:
            os.close(handle)
        return False

    def close(self) -> None:
        """Release the lock; the next write takes it again."""
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def save(self, state: Mapping[str, npt.NDArray[Any]], meta: Mapping[str, Any]) -> Path:
        """Write a snapshot, sync it to disk, remove the oldest beyond `keep`; return its folder.

        Parameters
        ----------
        state : mapping
            Arrays of booleans, integers or floats, by name.
        meta : mapping
            JSON-serialisable data for the manifest.

        Raises
        ------
        Unavailable
            If the disk is full or the folder is gone; earlier snapshots are intact, try again.
        """
        self.lock()
        with _mapped(self.directory):
            number = max(self._numbers(), default=0) + 1
            draft = self.directory / f"draft-{number:012d}"
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir()
            safetensors.numpy.save_file(_dense(state), draft / STATE)
            size, digest = _forced(draft / STATE)
            manifest = {
                "format": FORMAT,
                "number": number,
                "created_ms": int(self._clock() * 1000),
                "files": {STATE: {"bytes": size, "sha256": digest}},
                "meta": dict(meta),
            }
            (draft / MANIFEST).write_bytes(_sealed(manifest))
            _forced(draft / MANIFEST)
            _force(draft)
            final = self.directory / f"snapshot-{number:012d}"
            draft.rename(final)
            _force(self.directory)
            self._prune()
        return final

    def newest_valid(self, log: logging.Logger = _LOG) -> Whole | None:
        """Return the newest intact snapshot, None if there are none; log damaged ones.

        Raises
        ------
        Inconsistent
            If a newer one has another format, or all are damaged: the operator must decide whether
            to use an older one or start a new model.
        """
        damaged = ""
        for number in sorted(self._numbers(), reverse=True):
            path = self._path(number)
            try:
                manifest = _manifest(path)
                return Whole(_state(path, manifest), manifest["meta"], path)
            except Damaged as exc:
                damaged = damaged or f"{path.name}: {exc}"
                log.error("snapshot %s is damaged: %s; trying the one before", path, exc)
            except Foreign as exc:
                raise Inconsistent(
                    f"cannot read the snapshot {path}: {exc}",
                    "start the version that wrote it, or move it away to continue from the one"
                    f" before; {ELSE_AFRESH}",
                ) from exc
        if damaged:
            raise Inconsistent(
                f"every snapshot in {self.directory} is damaged ({damaged})",
                f"restore an intact one from a backup; {ELSE_AFRESH}",
            )
        return None

    def set_aside(self) -> Path | None:
        """Move all snapshots into a new `aside-N` folder and return it; None if there are none.

        The oldest is moved first, so that after a crash in between the newest are still in place.
        """
        self.lock()
        with _mapped(self.directory):
            numbers = sorted(self._numbers())
            if not numbers:
                return None
            taken = [
                int(m.group(1)) for p in self.directory.iterdir() if (m := _ASIDE.match(p.name))
            ]
            aside = self.directory / f"aside-{max(taken, default=0) + 1:06d}"
            aside.mkdir()
            for number in numbers:
                self._path(number).rename(aside / self._path(number).name)
            _force(aside)
            _force(self.directory)
        return aside

    def list(self) -> Found:
        """Return the snapshots from old to new; checks manifests, and the state's size only."""
        return self._found(whole=False)

    def verify(self) -> Found:
        """Return the snapshots from old to new; checks every byte."""
        return self._found(whole=True)

    def epoch(self) -> int:
        """Return the last epoch claimed in this folder, 0 before the first."""
        try:
            with _mapped(self.directory):
                text = (self.directory / "epoch").read_bytes()
        except Unavailable as exc:
            if isinstance(exc.__cause__, FileNotFoundError):
                return 0
            raise
        try:
            return int(text)
        except ValueError as exc:
            raise Inconsistent(
                f"{self.directory / 'epoch'} holds {text[:20].decode(errors='replace')!r} instead"
                " of a number",
                "remove it if Redis still has its epoch key, else write a higher number into it",
            ) from exc

    def claim_epoch(self, at_least: int) -> int:
        """Return a new epoch, synced to disk: above all claimed here and at least `at_least`."""
        self.lock()
        with _mapped(self.directory):
            epoch = max(self.epoch() + 1, at_least)
            draft = self.directory / "draft-epoch"
            draft.write_text(f"{epoch}\n")
            _forced(draft)
            draft.replace(self.directory / "epoch")
            _force(self.directory)
        return epoch

    def _path(self, number: int) -> Path:
        return self.directory / f"snapshot-{number:012d}"

    def _numbers(self) -> Iterator[int]:
        """Yield the numbers of the snapshots in the folder."""
        if self.directory.exists():
            for path in self.directory.iterdir():
                if match := _NAME.match(path.name):
                    yield int(match.group(1))

    def _prune(self) -> None:
        """Remove intact snapshots older than the newest `keep`, and drafts left by a crash.

        Damaged ones and those of another format stay for the operator. A snapshot is renamed before
        its files are removed, so that no reader mistakes a partly removed one for a damaged one.
        """
        whole = [n for n in sorted(self._numbers()) if not self._inspect(n, whole=False).damage]
        for number in whole[: -self._keep]:
            self._path(number).rename(self.directory / f"draft-old-{number:012d}")
        for draft in self.directory.iterdir():
            if not _DRAFT.match(draft.name):
                continue
            if draft.is_dir():
                shutil.rmtree(draft, ignore_errors=True)
            else:
                draft.unlink(missing_ok=True)

    def _found(self, whole: bool) -> Found:
        found = [self._inspect(number, whole) for number in sorted(self._numbers())]
        # a damaged one whose folder is gone was pruned while we read it
        return [snapshot for snapshot in found if not snapshot.damage or snapshot.path.is_dir()]

    def _inspect(self, number: int, whole: bool) -> Snapshot:
        """Return one snapshot's description; `whole` checks every byte of the state."""
        path, size, damage = self._path(number), 0, ""
        manifest: dict[str, Any] = {}
        try:
            size = sum(file.stat().st_size for file in path.iterdir())
            manifest = _manifest(path)
            if whole:
                _state(path, manifest)
            elif (path / STATE).stat().st_size != manifest["files"][STATE]["bytes"]:
                raise Damaged(f"the size of {STATE} differs from the manifest's")
        except (Damaged, Foreign, OSError) as exc:
            damage = str(exc)
        created, meta = manifest.get("created_ms", 0), manifest.get("meta", {})
        return Snapshot(path, number, created, size, meta, damage)


def _dense(state: Mapping[str, npt.NDArray[Any]]) -> State:
    """Return the arrays in C order: safetensors writes the memory as it is."""
    for name, array in state.items():
        if array.dtype.kind not in "biuf" or array.dtype.itemsize > 8:
            raise Inconsistent(
                f"state {name!r} has dtype {array.dtype}, which a snapshot cannot hold"
            )
    return {
        name: array if array.flags.c_contiguous else array.copy(order="C")
        for name, array in state.items()
    }


def _sealed(manifest: dict[str, Any]) -> bytes:
    """Return the manifest as a line of JSON, followed by a line with its checksum."""
    body = orjson.dumps(manifest, option=orjson.OPT_SORT_KEYS)
    return body + b"\n" + hashlib.sha256(body).hexdigest().encode() + b"\n"


def _manifest(path: Path) -> dict[str, Any]:
    """Return the manifest of a snapshot.

    The format is checked before the checksum: other versions may use another checksum.
    """
    body, _, seal = _read(path / MANIFEST).partition(b"\n")
    sealed = seal == hashlib.sha256(body).hexdigest().encode() + b"\n"
    try:
        manifest: Any = orjson.loads(body)
    except orjson.JSONDecodeError as exc:
        raise Damaged(f"{MANIFEST} does not begin with a line of JSON") from exc
    named = manifest.get("format", FORMAT) if isinstance(manifest, dict) else FORMAT
    if type(named) is not int or named != FORMAT:
        raise Foreign(f"{MANIFEST} has format {named!r}, but this version reads {FORMAT}")
    if not sealed:
        raise Damaged(f"{MANIFEST} does not match its checksum")
    try:
        msgspec.convert(manifest, _Manifest)
    except msgspec.ValidationError as exc:
        raise Foreign(f"{MANIFEST}: {exc}") from exc
    if "format" not in manifest or STATE not in manifest["files"]:
        raise Foreign(f"{MANIFEST} lacks the format or the entry of {STATE}")
    return manifest  # type: ignore[no-any-return]


def _read(path: Path) -> bytes:
    """Return the file's bytes; raise Foreign if access is denied, Damaged on other errors."""
    try:
        return path.read_bytes()
    except PermissionError as exc:
        raise Foreign(f"cannot read {path.name}: {exc.strerror}") from exc
    except OSError as exc:
        raise Damaged(f"cannot read {path.name}: {exc.strerror}") from exc


def _state(path: Path, manifest: dict[str, Any]) -> State:
    """Return the arrays of a snapshot after checking size and checksum."""
    data = _read(path / STATE)
    expected = manifest["files"][STATE]
    if len(data) != expected["bytes"]:
        raise Damaged(f"{STATE} has {len(data)} bytes, not {expected['bytes']}")
    if hashlib.sha256(data).hexdigest() != expected["sha256"]:
        raise Damaged(f"{STATE} does not match its checksum")
    try:
        loaded = safetensors.numpy.load(data)
    except (SafetensorError, KeyError) as exc:  # KeyError: a dtype that numpy lacks
        raise Foreign(f"{STATE}: {exc}") from exc
    return {name: np.array(array) for name, array in loaded.items()}  # writable copies


def _forced(path: Path) -> tuple[int, str]:
    """Sync the file to disk and return its size and SHA-256."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()


def _make(directory: Path) -> None:
    """Create the folder with its parents and sync their names to disk."""
    made, at = [directory], directory.parent
    while not at.is_dir():
        made.append(at)
        at = at.parent
    directory.mkdir(parents=True, exist_ok=True)
    for folder in reversed(made):
        try:
            _force(folder.parent)
        except PermissionError:  # an existing parent that may be entered but not read
            continue


def _force(directory: Path) -> None:
    """Sync the folder's entries to disk."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _mapped(directory: Path) -> Iterator[None]:
    """Map errors of the disk to Unavailable."""
    try:
        yield
    except OSError as exc:
        raise Unavailable(
            f"cannot write snapshots in {directory}: {exc.strerror or exc}",
            5.0,
            "free disk space, or make the folder writable",
        ) from exc
    except SafetensorError as exc:  # its writer hides the underlying OSError
        raise Unavailable(f"cannot write snapshots in {directory}: {exc}", 5.0) from exc
