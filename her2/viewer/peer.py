"""`her2 view`: whose program asks, on the same machine.

The arguments of a browser can be read by all users of a machine as soon as it starts, so whoever
watches for them may be faster than it is. Linux says which user a connection belongs to.
"""

import os
import socket
import struct
from pathlib import Path

_ESTABLISHED = "01"
_ROOT = 0

Address = tuple[str, int]
"""IP address and port."""


def is_ours(client: Address | None, server: Address | None) -> bool:
    """Return whether a connection of this machine is from a program of this user, or of root.

    Where the system does not tell, all are.

    Args:
        client: where it comes from.
        server: where it was asked.
    """
    tables = [path for path in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")) if path.is_file()]
    if not tables:
        return True
    if client is None or server is None:
        return False
    wanted = [_hexadecimal(client), _hexadecimal(server)]
    for table in tables:
        for line in table.read_text().splitlines()[1:]:
            _, local, remote, state, *more = line.split()
            if [local, remote] == wanted and state == _ESTABLISHED:
                return int(more[3]) in (os.getuid(), _ROOT)
    return False


def _hexadecimal(address: Address) -> str:
    """Return an address as these tables have it: words in the order of this machine."""
    host, port = address
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    packed = socket.inet_pton(family, host.partition("%")[0])
    words = struct.unpack(f"={len(packed) // 4}I", packed)
    return "".join(f"{word:08X}" for word in words) + f":{port:04X}"
