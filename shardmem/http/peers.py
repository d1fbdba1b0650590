"""Who is at the other end of a connection."""

from __future__ import annotations

import asyncio
import os
import socket
import struct

_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST = 1
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence, port
_QUESTION = struct.Struct("=BBBxI")  # struct inet_diag_req_v2: family, protocol, extensions, states; then the socket
_SOCKET = struct.Struct("!HH16s16sI8s")  # struct inet_diag_sockid: ports, addresses, interface, cookie
_UID_AT = _HEADER.size + 4 + _SOCKET.size + 12  # in the answer, struct inet_diag_msg


def uid_of_unix(connection: socket.socket) -> int:
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
    return int(uid)


def uid_of_loopback(transport: asyncio.BaseTransport) -> int | None:
    """The user whose socket is at the other end of a TCP connection over IPv4 loopback, as the kernel says; None: it
    does not say."""
    ours, theirs = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
    try:
        identity = _SOCKET.pack(
            theirs[1], ours[1], socket.inet_aton(theirs[0]), socket.inet_aton(ours[0]), 0, b"\xff" * 8
        )
        question = _QUESTION.pack(socket.AF_INET, socket.IPPROTO_TCP, 0, 0xFFFFFFFF) + identity
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as kernel:
            kernel.setblocking(False)
            length = _HEADER.size + len(question)
            kernel.send(_HEADER.pack(length, _SOCK_DIAG_BY_FAMILY, _REQUEST, 0, 0) + question)
            answer = kernel.recv(4096)
    except (OSError, TypeError, IndexError, AttributeError):
        return None
    if len(answer) < _UID_AT + 4 or _HEADER.unpack_from(answer)[1] != _SOCK_DIAG_BY_FAMILY:
        return None
    return int(struct.unpack_from("=I", answer, _UID_AT)[0])


def name_of_tcp(transport: asyncio.BaseTransport) -> int | str | None:
    """The user at the other end if it is on this machine, else its address."""
    if (uid := uid_of_loopback(transport)) is not None:
        return uid
    theirs = transport.get_extra_info("peername")
    return str(theirs[0]) if theirs else None


def is_owner(uid: int) -> bool:
    """Who may give commands without a token: the user of this process, and root."""
    return uid in (os.getuid(), 0)
