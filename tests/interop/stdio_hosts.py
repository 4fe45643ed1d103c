"""Several MCP hosts start `drydock stdio` on one state folder at the same moment.

    stdio_hosts.py DRYDOCK STATE_FOLDER

Each must be answered; and when the one whose process happens to be the gateway leaves, the others must be answered
again, by a gateway that one of them runs. Needs nothing but Python's own library; exits non-zero on any mismatch.
"""

import json
import os
import socket
import subprocess
import sys
import time

HOSTS = 4
TAKES_OVER_WITHIN_S = 15


class Host:
    """A host with one server over stdio."""

    def __init__(self, drydock: str, state: str, port: int) -> None:
        command = [drydock, "stdio", "--state-dir", state, "--listen", f"127.0.0.1:{port}", "--log-filter", "error"]
        environment = {name: value for name, value in os.environ.items() if name != "DRYDOCK_URL"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        self.process = subprocess.Popen(command, text=True, env=environment, **pipes)
        self.next_id = 0

    def send(self, method: str, params: dict) -> None:
        self.next_id += 1
        message = {"jsonrpc": "2.0", "id": self.next_id, "method": method, "params": params}
        self.process.stdin.write(json.dumps(message) + "\n")
        self.process.stdin.flush()

    def receive(self) -> dict:
        answer = json.loads(self.process.stdout.readline())
        assert answer["id"] == self.next_id, answer
        return answer

    def models(self) -> dict:
        self.send("tools/call", {"name": "list_models", "arguments": {}})
        return self.receive()

    def leave(self) -> None:
        self.process.stdin.close()
        assert self.process.wait(timeout=20) == 0, self.process.returncode


def main(drydock: str, state: str) -> None:
    # All must agree on the port before there is a gateway to tell it.
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    hosts = [Host(drydock, state, port) for _ in range(HOSTS)]
    client = {"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {"name": "host", "version": "1"}}
    for host in hosts:
        host.send("initialize", client)
    for host in hosts:
        assert host.receive()["result"]["serverInfo"], "not initialized"
    # One after the other leaves; whoever is left must be served.
    while len(hosts) > 1:
        hosts.pop(0).leave()
        for host in hosts:
            until_served(host)
    hosts.pop().leave()
    print(f"{HOSTS} hosts were served, whichever of them left")


def until_served(host: Host) -> None:
    deadline = time.monotonic() + TAKES_OVER_WITHIN_S
    while "result" not in (answer := host.models()):
        assert time.monotonic() < deadline, answer


if __name__ == "__main__":
    main(*sys.argv[1:])
