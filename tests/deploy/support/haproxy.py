"""A load balancer whose servers a test puts in and takes out, as Kubernetes does with the endpoints of a Service."""

from __future__ import annotations

import contextlib
import socket
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from tests.support.servers import free_port, until

__all__ = ["Balancer", "balancer"]

_CONFIG = """
global
    stats socket {socket} level admin
    maxconn 256
defaults
    mode http
    timeout connect 2s
    timeout client 60s
    timeout server 60s
frontend service
    bind 127.0.0.1:{port}
    default_backend pods
backend pods
    balance roundrobin
"""


class Balancer:
    """`url` is what clients use. Names are those of `balancer`."""

    def __init__(self, port: int, control: Path) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._control = control

    def put_in(self, name: str, port: int) -> None:
        """Send requests to a server that listens here."""
        self._say(f"set server pods/{name} addr 127.0.0.1 port {port}")
        self._say(f"set server pods/{name} state ready")

    def take_out(self, name: str) -> None:
        """Send no further request to a server; those under way end there."""
        self._say(f"set server pods/{name} state drain")

    def _say(self, command: str) -> str:
        with socket.socket(socket.AF_UNIX) as control:
            control.connect(str(self._control))
            control.sendall(command.encode() + b"\n")
            answer = b""
            while part := control.recv(4096):
                answer += part
        text = answer.decode().strip()
        assert not text or "changed" in text or "no need to change" in text, text
        return text


@contextlib.contextmanager
def balancer(folder: Path, names: Sequence[str]) -> Iterator[Balancer]:
    """haproxy with servers of these names, all of them out."""
    port, control = free_port(), folder / "haproxy.sock"
    servers = "".join(f"    server {name} 127.0.0.1:1 disabled\n" for name in names)
    (folder / "haproxy.cfg").write_text(_CONFIG.format(socket=control, port=port) + servers)
    process = subprocess.Popen(["haproxy", "-db", "-f", str(folder / "haproxy.cfg")])
    try:
        until(lambda: control.exists() or process.poll() is not None, "haproxy listens")
        assert process.poll() is None
        yield Balancer(port, control)
    finally:
        process.kill()
        process.wait()
