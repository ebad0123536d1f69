"""Exits with 0 when the sive of this container lives: its HEALTHCHECK, in an image without curl."""

import os
import socket
import sys


def is_alive(port: int) -> bool:
    """Does /health answer with 200?"""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=4) as connection:
            connection.sendall(b"GET /health HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n")
            return connection.recv(64).split(b" ")[1:2] == [b"200"]
    except OSError:
        return False


if __name__ == "__main__":
    sys.exit(not is_alive(int(os.environ.get("PORT") or 8000)))
