"""The engines and orchd, as processes with ports of their own.

Each ends with the test process, however that ends, and writes to a file of ORCHD_TEST_LOGS.
"""

import ctypes
import os
import random
import signal
import socket
import subprocess
import time
from pathlib import Path

import httpx2

HOME = Path(os.environ["ORCHD_TEST_ENGINE_DIR"])
EXECUTABLE = os.environ["ORCHD_TEST_EXECUTABLE"]
LOGS = Path(os.environ["ORCHD_TEST_LOGS"])
TEMPLATE = Path(__file__).parents[1] / "fixtures/engine/tools_and_thoughts.jinja"

# Operators and agents; those who use the models. Long enough for orchd not to warn about them.
API_TOKEN = "operator-operator-operator-operator"
CLIENT_TOKEN = "client-client-client-client-client"

START_S = 20


def free_port():
    """Below the range from which the system gives ports to those who ask for any."""
    while True:
        port = random.randrange(10_000, 30_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
                return port
            except OSError:
                continue


def die_with_parent():
    """PR_SET_PDEATHSIG."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


class Process:
    """A running server. `command` is given its port."""

    count = 0

    def __init__(self, name, command, ready, environment=None):
        Process.count += 1
        self.name = f"{name}-{Process.count}"
        self.command, self.ready, self.environment = command, ready, environment or {}
        self.log = LOGS / f"{self.name}.log"
        for last in (False, True):
            self.port = free_port()
            try:
                return self.start()
            except ChildProcessError:
                # Somebody may have taken the port.
                if last:
                    raise

    def start(self):
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                self.command(self.port),
                env=self.environment,
                cwd=LOGS,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent,
            )
        eventually(self.is_ready, f"{self.name} is ready")

    def is_ready(self):
        if self.process.poll() is not None:
            raise ChildProcessError(f"{self.name} ended:\n{self.log.read_text()[-2000:]}")
        try:
            return httpx2.get(self.url + self.ready, timeout=5).status_code == 200
        except httpx2.TransportError:
            return False

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    def kill(self):
        self.process.kill()
        self.process.wait()

    def stop(self):
        """SIGTERM; gives the exit status."""
        self.process.terminate()
        return self.process.wait(timeout=START_S)


def eventually(look, what, limit_s=START_S):
    """Looks again and again until there is something to see."""
    deadline = time.monotonic() + limit_s
    while True:
        if seen := look():
            return seen
        assert time.monotonic() < deadline, f"not within {limit_s} s: {what}"
        time.sleep(0.02)


def engine(model, slots, *more, file=None):
    """A llama-server, one thread each: several wait for each other by spinning."""

    def command(port):
        return [
            HOME / "bin/llama-server",
            *("-m", HOME / f"{file or model}.gguf", "--alias", model, "--jinja"),
            *("--host", "127.0.0.1", "--port", str(port), "-np", str(slots), "-c", str(2048 * slots)),
            *("-ngl", "0", "--device", "none", "-t", "1", "--slots", "--metrics", *more),
        ]

    return Process(f"engine-{model}", command, "/health", {"LD_LIBRARY_PATH": str(HOME / "bin")})


def orchd(verb, *arguments, ready="/readyz"):
    """orchd as its users start it."""

    def command(port):
        return [EXECUTABLE, verb, "--listen", f"127.0.0.1:{port}", *arguments]

    environment = {"HOME": str(LOGS), "RUST_BACKTRACE": "1", "ORCHD_API_TOKEN": API_TOKEN}
    if verb == "serve":
        environment["ORCHD_CLIENT_TOKEN"] = CLIENT_TOKEN
    return Process(f"orchd-{verb}", command, ready, environment)


def wait_for_pools(server, count):
    """Until the control plane has so many engines to send requests to."""

    def ready():
        headers = {"authorization": f"Bearer {API_TOKEN}"}
        pools = httpx2.get(server.url + "/v2/pools", headers=headers).json()["pools"]
        return sum(pool["ready"] for pool in pools) == count

    eventually(ready, f"{count} pools are ready at {server.name}")


def end(server):
    """Stops orchd in good order, and looks for what it should not have written."""
    status = server.stop()
    log = server.log.read_text()
    assert status == 0, f"{server.name} ended with {status}"
    assert "ERROR" not in log and "panicked" not in log, f"{server.name} has logged an error"
