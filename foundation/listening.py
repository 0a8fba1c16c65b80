"""Listening sockets: of TCP, and Unix sockets that replace what a dead process left; and who connected to those."""

from __future__ import annotations

import socket
import stat
import struct
from pathlib import Path

from foundation.faults import Fault
from foundation.reasons import Reason

BACKLOG = 128
_UCRED = struct.Struct("=3i")  # pid, uid, gid: struct ucred of unix(7)


def listen(host: str, port: int, backlog: int = BACKLOG) -> socket.socket:
    """A socket that listens there; `backlog` connections may wait to be accepted. Raises `Fault(SETTING_INVALID)`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listening = socket.create_server((host, port), family=family, backlog=backlog)
    except OSError as error:
        raise Fault(Reason.SETTING_INVALID, f"cannot listen: {error.strerror}", field=f"{host}:{port}") from error
    listening.setblocking(False)
    return listening


def listen_unix(path: Path, mode: int = 0o600, backlog: int = BACKLOG) -> socket.socket:
    """A socket that listens at `path`. Raises `Fault(SETTING_INVALID)`."""
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        remove_dead_socket(path)
        listening.bind(str(path))
        path.chmod(mode)  # before listen: until then nobody can connect
        listening.listen(backlog)
    except OSError as error:
        listening.close()
        raise Fault(Reason.SETTING_INVALID, f"cannot listen: {error.strerror}", field=str(path)) from error
    listening.setblocking(False)
    return listening


def remove_dead_socket(path: Path) -> None:
    """Remove `path` where it is a socket that nobody listens at any more."""
    if not path.exists() or not stat.S_ISSOCK(path.lstat().st_mode):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink()


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end of a Unix socket, as the kernel recorded it at connect (SO_PEERCRED)."""
    credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size)
    return int(_UCRED.unpack(credentials)[1]) & 0xFFFFFFFF  # uid_t has no sign
