# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""The script around a run: what it refuses, and that nothing of a run outlives it."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from chaos import sandbox  # noqa: E402
from chaos.faults import FAULTS  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
CHAOS = ROOT / "scripts/chaos"
PATIENCE = 120


def chaos(*words, prefix=(), folder=None):
    environment = {**os.environ, **({"TMPDIR": str(folder)} if folder else {})}
    return subprocess.run(
        [*prefix, str(CHAOS), *words], capture_output=True, text=True, env=environment, timeout=300
    )


def processes(needle: str) -> list[str]:
    """Those that name it in their command, their environment or their folder."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if needle.encode() in (entry / "cmdline").read_bytes():
                found.append(entry.name)
        except OSError:
            pass
    return found


def wait_until(what, check):
    end = time.monotonic() + PATIENCE
    while not (value := check()):
        assert time.monotonic() < end, what
        time.sleep(0.05)
    return value


def test_an_unknown_fault_is_refused_with_those_there_are():
    done = chaos("--faults", "kill-leader,rain")
    assert done.returncode == 2 and "rain" in done.stderr and all(name in done.stderr for name in FAULTS)


def test_a_fault_of_etcd_is_refused_without_etcd():
    done = chaos("--faults", "kill-etcd")
    assert done.returncode == 2 and "kill-etcd needs --etcd" in done.stderr


def test_without_root_it_says_so_and_does_nothing():
    done = chaos("--seconds", "1", prefix=("unshare", "--user", "--map-user=1000"))
    assert done.returncode == 3 and "needs root" in done.stderr


def test_without_its_binaries_it_says_what_to_build(tmp_path):
    done = chaos("--bin", str(tmp_path))
    assert done.returncode == 3 and "memq-replication" in done.stderr and "swift build" in done.stderr


def test_nothing_of_a_run_outlives_its_kill_and_the_next_one_sweeps_its_folder(tmp_path):
    run = subprocess.Popen(
        [CHAOS, "--seconds", "60", "--faults", "kill-leader"], stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    for line in run.stderr:
        if "the cluster runs" in line:
            break
    assert processes(str(tmp_path))
    mounts = len(Path("/proc/mounts").read_text().splitlines())
    run.kill()
    run.wait()
    wait_until("all of its processes are gone", lambda: not processes(str(tmp_path)))
    loops = subprocess.run(["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True, text=True)
    assert len(Path("/proc/mounts").read_text().splitlines()) == mounts
    wait_until("its disks are let go", lambda: str(tmp_path) not in subprocess.run(
        ["losetup", "--list", "--noheadings", "--output", "BACK-FILE"], capture_output=True, text=True).stdout)
    assert loops.returncode == 0
    assert [p for p in tmp_path.iterdir() if p.name.startswith(sandbox.PREFIX)]
    # The next one, which goes through here before anything else.
    sandbox._sweep(tmp_path)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(sandbox.PREFIX)]


def test_a_short_run_ends_right_and_its_kept_histories_are_judged_again(tmp_path):
    kept = tmp_path / "kept"
    done = chaos("--seconds", "1", "--seed", "1", "--faults", "kill-leader", "--keep", str(kept), "-o", "json", folder=tmp_path)
    report = json.loads(done.stdout)
    assert done.returncode == 0 and report["ok"] and report["faults"][0]["fault"] == "kill-leader", done.stderr
    assert report["counts"]["acknowledged"] > 0 and report["counts"]["read by consumers"] > 0
    again = chaos("check", str(kept), "-o", "json")
    assert again.returncode == 0 and json.loads(again.stdout)["counts"] == report["counts"]
    # An acknowledgement that lies is found.
    path = kept / "producer-1.jsonl"
    lines = path.read_text().splitlines()
    at = next(k for k, line in enumerate(lines) if '"ack"' in line)
    event = json.loads(lines[at])
    lines[at] = json.dumps({**event, "o": event["o"] + 1})
    path.write_text("\n".join(lines) + "\n")
    wrong = chaos("check", str(kept))
    assert wrong.returncode == 1 and f"producer-1.jsonl:{at + 1}" in wrong.stdout
