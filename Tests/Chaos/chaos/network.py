# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""One network namespace per process of the cluster, on a bridge; cuts in one direction, narrow links, long links.

Everything lives in the run's own network and mount namespace (sandbox.py): nothing of the machine's network is touched.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SUBNET = "10.77.0"
BRIDGE = "hub"


def command(*words, check: bool = True) -> subprocess.CompletedProcess:
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, words))}: {done.stderr.strip() or done.stdout.strip()}")
    return done


class Network:
    def __init__(self):
        self.address: dict[str, str] = {}
        self.delays: dict[str, subprocess.Popen] = {}
        Path("/run/netns").mkdir(parents=True, exist_ok=True)
        command("mount", "-t", "tmpfs", "none", "/run/netns")
        command("ip", "link", "set", "lo", "up")
        command("ip", "link", "add", BRIDGE, "type", "bridge")
        command("ip", "link", "set", BRIDGE, "up")

    def add(self, name: str, last: int) -> str:
        """A namespace with the address 10.77.0.LAST; gives the address."""
        address = f"{SUBNET}.{last}"
        port = f"p{last}"
        command("ip", "netns", "add", name)
        command("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        command("ip", "link", "set", port, "master", BRIDGE, "up")
        command("ip", "-n", name, "addr", "add", f"{address}/24", "dev", "eth0")
        command("ip", "-n", name, "link", "set", "eth0", "up")
        command("ip", "-n", name, "link", "set", "lo", "up")
        self.inside(name, "nft", "add", "table", "inet", "cuts")
        self.inside(name, "nft", "add", "chain", "inet", "cuts", "input", "{ type filter hook input priority 0; }")
        self.address[name] = address
        return address

    def prefix(self, name: str) -> list[str]:
        """What runs a command inside; it becomes the command, so that its process id is the command's."""
        return ["nsenter", f"--net=/run/netns/{name}"]

    def inside(self, name: str, *words, check: bool = True) -> subprocess.CompletedProcess:
        return command(*self.prefix(name), *words, check=check)

    def port(self, name: str) -> str:
        return "p" + self.address[name].rsplit(".", 1)[1]

    # ---- Faults ------------------------------------------------------------------------------------------------------

    def cut(self, sender: str, receiver: str) -> None:
        """What `sender` sends does not reach `receiver`; the other way still works. No answer, no reset: silence."""
        self.inside(receiver, "nft", "add", "rule", "inet", "cuts", "input", "ip", "saddr", self.address[sender], "drop")

    def mend(self, receiver: str) -> None:
        """Everything reaches `receiver` again."""
        self.inside(receiver, "nft", "flush", "chain", "inet", "cuts", "input")

    def narrow(self, name: str, kilobits: int) -> None:
        """At most so many kilobits per second in each direction; what waits longer than 200 ms is dropped."""
        words = ("root", "tbf", "rate", f"{kilobits}kbit", "burst", "32kb", "latency", "200ms")
        command("tc", "qdisc", "replace", "dev", self.port(name), *words)
        self.inside(name, "tc", "qdisc", "replace", "dev", "eth0", *words)

    def widen(self, name: str) -> None:
        command("tc", "qdisc", "del", "dev", self.port(name), "root", check=False)
        self.inside(name, "tc", "qdisc", "del", "dev", "eth0", "root", check=False)

    def lengthen(self, name: str, to_ms: float, from_ms: float, jitter_ms: float = 0, loss: float = 0, seed: int = 0) -> None:
        """Each frame to and from `name` arrives so much later; some never do. The wire is cut open and a process put between
        its ends (frames.py), as this needs nothing of the kernel's own delay queue, which many kernels lack."""
        port = self.port(name)
        near, far = f"d{port}", f"e{port}"
        command("ip", "link", "add", near, "type", "veth", "peer", "name", far)
        command("ip", "link", "set", near, "up")
        command("ip", "link", "set", far, "up")
        command("ip", "link", "set", port, "nomaster")
        command("ip", "link", "set", far, "master", BRIDGE)
        self.delays[name] = subprocess.Popen(
            [sys.executable, "-m", "chaos.frames", port, near, str(to_ms), str(from_ms), str(jitter_ms), str(loss), str(seed)],
            stdout=subprocess.PIPE,
        )
        self.delays[name].stdout.readline()

    def shorten(self, name: str) -> None:
        process = self.delays.pop(name, None)
        if process is None:
            return
        process.kill()
        process.wait()
        port = self.port(name)
        command("ip", "link", "del", f"d{port}", check=False)
        command("ip", "link", "set", port, "master", BRIDGE)

    def mend_all(self) -> None:
        for name in self.address:
            self.mend(name)
            self.widen(name)
            self.shorten(name)

    def bytes_of(self, name: str) -> tuple[int, int]:
        """(received, sent) by the namespace since its beginning."""
        base = Path(f"/sys/class/net/{self.port(name)}/statistics")
        try:
            return int((base / "tx_bytes").read_text()), int((base / "rx_bytes").read_text())
        except OSError:
            out = command("ip", "-s", "-j", "link", "show", "dev", self.port(name)).stdout
            import json

            (row,) = json.loads(out)
            return row["stats64"]["tx"]["bytes"], row["stats64"]["rx"]["bytes"]
