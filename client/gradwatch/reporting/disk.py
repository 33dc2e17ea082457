"""What the spool needs to know about the folder it writes to."""

import os
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows has none; there two processes must be kept apart by their users
    fcntl = None  # type: ignore[assignment] # the module or nothing, asked for below

__all__ = ["LOCK_NAME", "is_network_mount", "try_lock"]

LOCK_NAME = "lock"
_NETWORK = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "lustre",
        "ceph",
        "gpfs",
        "beegfs",
        "afs",
        "glusterfs",
        "fuse.sshfs",
        "fuse.glusterfs",
        "9p",
    ]
)


def try_lock(folder: Path) -> int | None:
    """Lock a folder against other processes until the descriptor is closed, or the process ends.

    Returns:
        The descriptor, or None when another process holds the lock.
    """
    descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o600)
    if fcntl is None:
        return descriptor
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    except OSError:  # a file system without locks: better unlocked than unused
        return descriptor
    return descriptor


def is_network_mount(folder: Path, mounts: Path = Path("/proc/mounts")) -> bool:
    """Whether the folder lies on a network file system, as far as this machine can tell."""
    try:
        lines = mounts.read_text().splitlines()
    except OSError:
        return False
    real = folder.resolve()
    best, kind = -1, ""
    for line in lines:
        fields = line.split()
        if len(fields) < 3:
            continue
        point = Path(fields[1].replace("\\040", " "))
        if real.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), fields[2]
    return kind in _NETWORK
