"""Where things lie in an index folder, who may read them, and which file systems can carry one.

    INDEX/
    ├── catalog.sqlite      the SQL database; the only commit point
    ├── segments/           SPACE-NNNNNN.seg, immutable vector files, and tokens-NNNNNN.seg
    ├── damaged/            what a repair has set aside; nothing reads it
    └── lock                held (flock) by the one writer; its text is that writer's process id

Anything else in the folder is left alone. No SQL and no numpy here.
"""

from __future__ import annotations

import functools
import os
import re
import sys
from pathlib import Path

from mmsearch.retrieval.errors import IndexCorrupt, IndexNotFound, IndexUnusable, UnsafeFilesystem
from mmsearch.retrieval.types import Root

FORMAT_VERSION = 4
"""Number of the newest index format that this code writes; SQLite's `user_version` of the catalog."""

APPLICATION_ID = 0x6D6D7331
"""SQLite's `application_id` of a catalog ("mms1"): what makes a folder recognisable as an index."""

CATALOG = "catalog.sqlite"
SEGMENTS = "segments"
LOCK = "lock"
TOKENS = "tokens"
"""What files of compressed image tokens are called, in place of a space."""
NEW_CATALOG = "catalog.sqlite.new"
OLD_CATALOG = "catalog.sqlite.old"
"""A damaged catalog while a repair puts another in its place."""
DAMAGED = "damaged"

RESTORE = "`mmsearch doctor` says what can be saved, `mmsearch doctor --repair` does it"
"""What to do about an index that is damaged; the end of messages."""

ROWS = "rows:"
"""The root of rows that a program gave: they have ids and no folder."""

_SEGMENT_NAME = re.compile(r"[a-z]+-\d{6,}\.seg(\.tmp)?")
_NETWORK = re.compile(
    r"nfs\d?|cifs|smb\d?|smbfs|ncpfs|afs|afpfs|coda|ceph|glusterfs|lustre|beegfs|gpfs|orangefs|pvfs2|webdav|davfs"
    r"|fuse\.(sshfs|glusterfs|ceph|davfs2?|rclone|s3fs|gcsfuse|goofys|curlftpfs|smbnetfs|juicefs|mountpoint-s3)"
)


def default_index_path() -> Path:
    """The index of this user when no other is named."""
    from platformdirs import user_data_dir

    return Path(user_data_dir("mmsearch", appauthor=False)) / "index"


def is_index(path: Path) -> bool:
    """Whether `path` is an index folder of any format, judged by the first 72 bytes of its catalog.

    Raises IndexUnusable where that may not be read: to make another index there would be wrong.
    """
    try:
        with open(path / CATALOG, "rb") as file:
            head = file.read(72)
    except PermissionError as error:
        raise IndexUnusable(f"the catalog of the index at {path} cannot be read: {error.strerror}") from error
    except OSError:
        return False
    return head[:16] == b"SQLite format 3\0" and head[68:72] == APPLICATION_ID.to_bytes(4, "big")


def require_index(path: Path) -> None:
    """Raises IndexNotFound, with what to do, unless `path` is an index; IndexCorrupt where it was one."""
    if not is_index(path):
        refuse_ruins(path)
        raise IndexNotFound(f"there is no index at {path}; make one with: mmsearch index FOLDER --index {path}")


def refuse_ruins(path: Path) -> None:
    """Raises IndexCorrupt where `path` has segments but no catalog that could be read.

    A fresh catalog there would call every segment an orphan, and the next writer would remove them all.
    """
    try:
        names = os.listdir(path / SEGMENTS)
    except OSError:
        return
    if any(is_segment_name(name) and name.endswith(".seg") and not is_token_name(name) for name in names):
        state = "is damaged" if (path / CATALOG).exists() else "is missing"
        raise IndexCorrupt(f"the catalog of the index at {path} {state}, its vectors are there; {RESTORE}")


def too_new(index: Path, found: int) -> str:
    """What to tell a user whose index is newer than this code."""
    return (
        f"{index} has format {found} and this mmsearch reads up to {FORMAT_VERSION}; "
        "upgrade it with: pip install -U mmsearch"
    )


def make_folders(path: Path) -> None:
    """Makes the index folder and its `segments` with mode 0700; folders that exist keep their mode.

    Folders above that had to be made are on the medium when it returns; the rest is synced when there is an index.
    """
    above = [folder for folder in path.parents if not folder.exists()]
    path.parent.mkdir(parents=True, exist_ok=True)
    for folder in above:
        sync_folder(folder.parent)
    for folder in (path, path / SEGMENTS):
        folder.mkdir(mode=0o700, exist_ok=True)


def require_room_for_index(path: Path) -> None:
    """Raises IndexUnusable where `path` is a file or a folder of other things; empty or absent is well."""
    if path.exists() and not path.is_dir():
        raise IndexUnusable(f"{path} is a file; an index is a folder: name another one with --index")
    ours = {CATALOG, SEGMENTS, LOCK, NEW_CATALOG, DAMAGED}
    if path.is_dir():
        for name in sorted(os.listdir(path)):
            if not (name in ours or name.startswith((".", f"{NEW_CATALOG}-"))):
                if is_index(path):  # by now: another process has made it meanwhile
                    return
                raise IndexUnusable(
                    f"{path} holds other files ({name!r}) and no index; name a new or empty folder with --index"
                )


def create_file(path: Path) -> None:
    """Makes an empty file that only this user can read and write (mode 0600)."""
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))


def sync_file(descriptor: int) -> None:
    """Flushes a file to the medium itself (macOS needs F_FULLFSYNC for that)."""
    if sys.platform == "darwin":
        import fcntl

        fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)
    else:
        os.fsync(descriptor)


def sync_folder(path: Path) -> None:
    """Makes renames inside a folder durable. Windows has no such call and needs none."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def segment_name(space: str, number: int) -> str:
    """File name of a segment."""
    return f"{space}-{number:06d}.seg"


def is_segment_name(name: str) -> bool:
    """Whether a file in `segments` is one of ours, finished or temporary."""
    return _SEGMENT_NAME.fullmatch(name) is not None


def is_token_name(name: str) -> bool:
    """Whether a file in `segments` holds tokens, which are derived, and no vectors."""
    return name.startswith(f"{TOKENS}-")


def stored_root(index: Path, root: Root) -> tuple[bytes, bool]:
    """A root as the catalog keeps it: bytes of its path, and whether they are relative to the index.

    A root that contains the index folder, and a manifest in such a folder, is kept relative to the index, so that
    both can move together.
    """
    if root.kind == "rows":
        return os.fsencode(root.path), False
    real_index, real_root = os.path.realpath(index), os.path.realpath(root.path)
    folder = os.path.dirname(real_root) if root.kind == "manifest" else real_root
    if os.path.commonpath([real_index, folder]) == folder:
        return os.fsencode(os.path.relpath(real_root, real_index)), True
    return os.fsencode(os.path.abspath(root.path)), False


def root_path(index: Path, stored: bytes, relative: bool) -> str:
    """Absolute path of a root as the catalog keeps it; the inverse of `stored_root`."""
    path = os.fsdecode(stored)
    return os.path.normpath(os.path.join(os.path.realpath(index), path)) if relative else path


def is_root(root: str, relative: bool, path: str) -> bool:
    """Whether `path` names the root of that absolute path, which the catalog keeps relative to the index or not."""
    if ROWS in (root, path):
        return root == path
    return root == (os.path.realpath(path) if relative else os.path.abspath(path))


def index_bytes(path: Path) -> int:
    """Size on disk of an index: the catalog with its log, the segments, and what a repair has set aside."""
    total = 0
    for folder in (path, path / SEGMENTS, path / DAMAGED):
        aside = folder.name == DAMAGED
        try:
            with os.scandir(folder) as entries:
                total += sum(e.stat().st_size for e in entries if e.is_file() and (aside or _is_ours(e.name)))
        except FileNotFoundError:
            continue
    return total


def _is_ours(name: str) -> bool:
    return name.startswith(CATALOG) or name == LOCK or is_segment_name(name)


def refuse_network_filesystem(path: Path) -> None:
    """Raises UnsafeFilesystem where `path` (which need not exist) lies on a network drive.

    SQLite's write-ahead log needs memory shared between processes and working locks; network file systems
    give neither (https://www.sqlite.org/wal.html, https://www.sqlite.org/faq.html#q5).
    """
    real = os.path.realpath(path)
    best, kind = "", ""
    for mount, type_ in mount_table(real):
        inside = real == mount or real.startswith(mount.rstrip("/") + "/")
        if inside and len(mount) >= len(best):  # the last mount on a place hides the earlier ones
            best, kind = mount, type_
    if _NETWORK.fullmatch(kind):
        raise UnsafeFilesystem(
            f"{path} is on a network drive ({kind} at {best}), where an index can be damaged; "
            "keep it on a local disk with --index or MMSEARCH_INDEX (the photos themselves may stay there)"
        )


def mount_table(place: str) -> list[tuple[str, str]]:
    """(mount point, file system type) around `place`, in mount order; empty where it cannot be known."""
    if sys.platform == "darwin":
        while not os.path.exists(place):
            place = os.path.dirname(place)
        return _macos_mounts(os.stat(place).st_dev)
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            return parse_mountinfo(file.read())
    except OSError:
        return []


@functools.lru_cache(maxsize=8)
def _macos_mounts(device: int) -> list[tuple[str, str]]:
    """Asks a program, so once for each device: what is mounted over a place later has another device number."""
    import subprocess

    listing = subprocess.run(["/sbin/mount"], capture_output=True, text=True, check=False).stdout
    return re.findall(r"^.* on (.*) \(([^,)]+)", listing, flags=re.MULTILINE)


def parse_mountinfo(text: bytes) -> list[tuple[str, str]]:
    """Mount points and types out of Linux's /proc/self/mountinfo (proc(5))."""
    mounts = []
    for line in text.splitlines():
        before, _, after = line.partition(b" - ")
        fields, kind = before.split(b" "), after.split(b" ")[0]
        if len(fields) > 4:
            point = re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), fields[4])
            mounts.append((os.fsdecode(point), kind.decode("ascii", "replace")))
    return mounts
