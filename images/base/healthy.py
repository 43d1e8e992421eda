#!/usr/bin/python3
"""Exits 0 if http://127.0.0.1:8000PATH answers with a status of 200 to 399, else 1.

A bare socket: importing urllib would cost ten times the processor time of the question itself, every half minute.
"""

import os
import socket
import sys


def status(path: str, port: int) -> int:
    """The status that the service answers with."""
    request = f"GET {path} HTTP/1.0\r\nHost: 127.0.0.1:{port}\r\nConnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=4) as connection:
        connection.sendall(request.encode())
        line = b""
        while b"\n" not in line and len(line) < 256:
            piece = connection.recv(256)
            if not piece:
                break
            line += piece
    return int(line.split()[1])


if __name__ == "__main__":
    path = sys.argv[1] if len(sys.argv) > 1 else "/"
    port = int(os.environ.get("API_PORT") or 8000)
    try:
        code = status(path, port)
    except (OSError, ValueError, IndexError) as error:
        sys.exit(f"port {port} does not answer {path}: {error}")
    if not 200 <= code < 400:
        sys.exit(f"port {port} answers {path} with {code}")
