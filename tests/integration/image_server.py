# Copyright: the mage.lxd contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""An image server that speaks simplestreams, and counts how often each image is fetched from it."""

from __future__ import annotations

import contextlib
import hashlib
import http.server
import json
import secrets
import ssl
import threading
import time
import typing as t
from pathlib import Path

from ansible_collections.mage.lxd.tests.integration import tls


class ImageServer(t.NamedTuple):
    """Where it is, its certificate as text, the image's fingerprint, and the paths that were asked for."""

    url: str
    certificate: str
    fingerprint: str
    asked: list[str]

    @property
    def downloads(self) -> int:
        """How often the image was fetched."""
        return sum(path.endswith("/image.tar.gz") for path in self.asked)


def _documents(image: bytes, alias: str) -> dict[str, bytes]:
    digest = hashlib.sha256(image).hexdigest()
    item = {"size": len(image), "sha256": digest, "path": "image.tar.gz"}
    kinds = {kind: {**item, "ftype": kind} for kind in ("lxd_combined.tar.gz", "incus_combined.tar.gz")}
    version = {"items": kinds}
    product = {
        "aliases": alias,
        "arch": "amd64",
        "os": "busybox",
        "release": "test",
        "release_title": "test",
        "variant": "default",
        "versions": {"20260101_00:00": version},
    }
    index = {"images": {"datatype": "image-downloads", "path": "streams/v1/images.json", "products": ["busybox"]}}
    images = {"content_id": "images", "datatype": "image-downloads", "products": {"busybox": product}}
    return {
        "/streams/v1/index.json": json.dumps({"format": "index:1.0", "index": index}).encode(),
        "/streams/v1/images.json": json.dumps({**images, "format": "products:1.0"}).encode(),
        "/image.tar.gz": image,
    }


@contextlib.contextmanager
def image_server(folder: Path, image: bytes, alias: str) -> t.Iterator[ImageServer]:
    """Listen on the loopback with one image, at an address of its own: servers remember for an hour what was there."""
    folder.mkdir()
    cert, key = tls.make_certificate(folder, "images")
    documents, asked = _documents(image, alias), []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = documents.get(self.path)
            # Slow enough for others to ask meanwhile.
            time.sleep(0.5 if self.path == "/image.tar.gz" else 0)
            self.send_response(200 if body is not None else 404)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *args: object) -> None:
            """Say nothing."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    address = f"127.{secrets.randbelow(254) + 1}.{secrets.randbelow(256)}.{secrets.randbelow(254) + 1}"
    with http.server.ThreadingHTTPServer((address, 0), Handler) as listener:
        listener.socket = context.wrap_socket(listener.socket, server_side=True)
        threading.Thread(target=listener.serve_forever, daemon=True).start()
        url = f"https://{address}:{listener.server_address[1]}"
        yield ImageServer(url, Path(cert).read_text(encoding="utf-8"), hashlib.sha256(image).hexdigest(), asked)
        listener.shutdown()
