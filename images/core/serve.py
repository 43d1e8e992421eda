#!/usr/bin/python3
"""Serves the files of a built site: serve.py DIR [PORT]. Nothing but Python's own library.

Unlike `python -m http.server` it answers an unknown path with the site's own 404 page, keeps connections open, lists no
folders and ends at once when it is told to.
"""

import functools
import http.server
import signal
import sys
from pathlib import Path


class Site(http.server.SimpleHTTPRequestHandler):
    """Files of one folder."""

    protocol_version = "HTTP/1.1"
    server_version = "obelisk"
    sys_version = ""

    def end_headers(self) -> None:
        # Pages have no version in their names, so a browser must ask whether they changed.
        self.send_header("Cache-Control", "no-cache")
        self.send_header("X-Content-Type-Options", "nosniff")
        super().end_headers()

    def list_directory(self, path):
        self.send_error(404)
        return None

    def send_error(self, code, message=None, explain=None) -> None:
        page = Path(self.directory) / "404.html"
        if code != 404 or not page.is_file():
            super().send_error(code, message, explain)
            return
        body = page.read_bytes()
        self.send_response(404)
        self.send_header("Content-Type", "text/html; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def main() -> None:
    site = Path(sys.argv[1])
    port = int(sys.argv[2]) if len(sys.argv) > 2 else 8000
    server = http.server.ThreadingHTTPServer(("0.0.0.0", port), functools.partial(Site, directory=str(site)))
    # As process 1 a container's Python would ignore SIGTERM.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(0))
    print(f"serving {site} on port {port}", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
