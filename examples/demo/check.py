# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""A client of the demo: asks every published thing once, and prints what it found as JSON.

check.py ADDRESS HTTP_PORT WEB_PORT TCP_PORT → [{"container": …, "claim": …, "found": …, "right": true}, …]
"""

from __future__ import annotations

import http.client
import json
import socket
import sys
import time

PATIENCE = 20.0


def fetch(address: str, port: int, host: str, path: str) -> str:
    """The body of a page, in one line; what went wrong instead."""
    client = http.client.HTTPConnection(address, port, timeout=5)
    try:
        client.request("GET", path, headers={"Host": host})
        answer = client.getresponse()
        body = answer.read().decode("utf-8", "replace").strip()
        return body if answer.status == 200 else f"{answer.status} {answer.reason}"
    except http.client.RemoteDisconnected:
        return "closed without an answer"
    except OSError as error:
        return str(error)
    finally:
        client.close()


def read(address: str, port: int) -> str:
    """What a TCP service says first."""
    try:
        with socket.create_connection((address, port), timeout=5) as client:
            return client.recv(100).decode("utf-8", "replace").strip()
    except OSError as error:
        return str(error)


def main() -> None:
    """Ask, again and again until it is right or patience is out: services may have just started."""
    address, (http_port, web_port, tcp_port) = sys.argv[1], map(int, sys.argv[2:5])
    claims = [
        ("demo-web-1", f"http://{address}:{web_port}/", "This is demo-web-1, index.html", (web_port, address, "/")),
        ("demo-web-1", "shop.example.org/", "This is demo-web-1, index.html", (http_port, "shop.example.org", "/")),
        ("demo-web-2", "blog.example.org/", "This is demo-web-2, index.html", (http_port, "blog.example.org", "/")),
        (
            "demo-web-2",
            "shop.example.org/api/",
            "This is demo-web-2, api/index.html",
            (http_port, "shop.example.org", "/api/"),
        ),
        ("demo-tcp-1", f"tcp {address}:{tcp_port}", "This is demo-tcp-1", (tcp_port,)),
        (
            "mageproxy",
            f"an unknown host on port {http_port} is refused",
            "closed without an answer",
            (http_port, "unknown.example.org", "/"),
        ),
    ]
    deadline = time.monotonic() + PATIENCE
    results = []
    for container, claim, expected, question in claims:
        while True:
            found = read(address, *question) if len(question) == 1 else fetch(address, *question)
            if found == expected or time.monotonic() > deadline:
                break
            time.sleep(0.3)
        results.append({"container": container, "claim": claim, "found": found, "right": found == expected})
    print(json.dumps(results))


if __name__ == "__main__":
    main()
