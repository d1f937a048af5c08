"""`python -m bench.spliced_server`: the server behind gate and HAProxy; prints where it listens.

A request is 128 bytes and is answered with 1 KiB, but where its first byte is B: with `SIZE` bytes.
"""

from __future__ import annotations

import socket
import threading
from contextlib import suppress

REQUEST, ANSWER = 128, 1024
SIZE = 256 * 2**20
_PIECE = bytes(2**18)


def _serve(sock: socket.socket) -> None:
    with sock, suppress(OSError):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while asked := sock.recv(REQUEST, socket.MSG_WAITALL):
            if asked[:1] == b"B":
                for _ in range(SIZE // len(_PIECE)):
                    sock.sendall(_PIECE)
            else:
                sock.sendall(bytes(ANSWER))


def main() -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)
    while True:
        sock, _peer = listener.accept()
        threading.Thread(target=_serve, args=(sock,), daemon=True).start()


if __name__ == "__main__":
    main()
