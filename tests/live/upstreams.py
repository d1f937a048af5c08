"""Servers of ours that stand for the internet: a resolver, a web server and one that speaks first, all on loopback."""

from __future__ import annotations

import http.server
import socket
import socketserver
import threading
from contextlib import suppress
from ipaddress import IPv4Address
from typing import Any

from vm.egress import dns

_HOST = "127.0.0.1"


class Upstreams:
    """Every name below `example` is here. `asked` are the names that were looked up; `web` and `greeter` are ports."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._dns = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._dns.bind((_HOST, 0))
        self.resolver = f"{_HOST}:{self._dns.getsockname()[1]}"
        self._servers: list[Any] = [
            http.server.ThreadingHTTPServer((_HOST, 0), _Web),
            socketserver.ThreadingTCPServer((_HOST, 0), _Greeter),
        ]
        self.web, self.greeter = (int(server.server_address[1]) for server in self._servers)
        for server in self._servers:
            server.daemon_threads = True
            threading.Thread(target=server.serve_forever, daemon=True).start()
        threading.Thread(target=self._answer, daemon=True).start()

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()
        self._dns.close()

    def _answer(self) -> None:
        while True:
            try:
                message, peer = self._dns.recvfrom(2048)
            except OSError:
                return
            query = dns.query_read(message)
            name = b".".join(query.labels).decode()
            self.asked.append(name)
            known = query.kind == dns.A and name.endswith(".example")
            self._dns.sendto(dns.answer(query, addresses=[IPv4Address(_HOST)] if known else []), peer)


class _Web(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f"hello from {self.headers['Host']}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class _Greeter(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.sendall(b"welcome\n")
        with suppress(ConnectionError):
            while data := self.request.recv(65_536):
                self.request.sendall(data)
