# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Speaks and answers TCP and UDP, as a program of its own: the tests run it inside containers' network namespaces.

``serve NAME TCP_PORT UDP_PORT`` answers with its name and the address that it was asked from.
``ask SECONDS PROTO ADDRESS PORT [SOURCE_PORT]`` prints the answer, or ends with exit code 1 after these seconds.
"""

from __future__ import annotations

import socket
import sys
import threading


def serve_udp(name: str, port: int) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as waiting:
        waiting.bind(("", port))
        while True:
            _data, peer = waiting.recvfrom(100)
            waiting.sendto(f"{name} {peer[0]}".encode(), peer)


def serve_tcp(name: str, port: int) -> None:
    with socket.create_server(("", port)) as waiting:
        print("ready", flush=True)
        while True:
            connection, peer = waiting.accept()
            with connection:
                connection.sendall(f"{name} {peer[0]}".encode())


def ask(seconds: float, proto: str, address: str, port: int, source: int = 0) -> str:
    kind = socket.SOCK_STREAM if proto == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as asking:
        asking.settimeout(seconds)
        asking.bind(("", source))
        asking.connect((address, port))
        if proto == "udp":
            asking.send(b"?")
        return asking.recv(100).decode()


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        threading.Thread(target=serve_udp, args=(sys.argv[2], int(sys.argv[4])), daemon=True).start()
        serve_tcp(sys.argv[2], int(sys.argv[3]))
    try:
        print(ask(float(sys.argv[2]), sys.argv[3], sys.argv[4], *(int(text) for text in sys.argv[5:])))
    except OSError as error:
        sys.exit(f"no answer: {error}")
