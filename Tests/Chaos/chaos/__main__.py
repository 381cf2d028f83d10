# Part of MemQ. SPDX-License-Identifier: Apache-2.0
"""scripts/chaos: see --help."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from . import cost, gaps, sandbox
from .api import ROOT
from .checker import check
from .faults import ETCD_FAULTS, FAULTS
from .run import Run, say

EPILOG = f"""
faults: {', '.join(name for name in FAULTS if name not in ETCD_FAULTS)}
with --etcd also: {', '.join(ETCD_FAULTS)}

Exit status: 0 right, 1 something is wrong (the histories are kept, their folder is said), 2 usage, 3 this machine can't do it.
"""


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos", formatter_class=argparse.RawDescriptionHelpFormatter, epilog=EPILOG,
        description="Runs a cluster of real processes in network namespaces of its own, inflicts faults on it under load, and "
        "proves from the clients' histories that it kept its promises. Needs root. docs/operations/chaos.md",
    )
    parser.add_argument("--seconds", type=float, default=180, help="how long faults come (default: 180)")
    parser.add_argument("--seed", type=int, help="of the schedule (default: a new one, which is said)")
    parser.add_argument("--faults", default="all", help="which, separated by commas; -NAME leaves one out (default: all)")
    parser.add_argument("--etcd", action="store_true", help="metadata in an etcd of three members, in two instances")
    parser.add_argument("--rate", type=float, default=1.0, help="factor of the load's pace (default: 1)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep histories and logs there, whatever comes out")
    parser.add_argument("--bin", type=Path, default=Path(os.environ.get("MEMQ_BIN", ROOT / ".build/debug")),
                        help="executables (environment: MEMQ_BIN; default: .build/debug)")
    parser.add_argument("-o", dest="output", choices=["text", "json"], default="text", help="json: one document on stdout")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    named = [name for name in options.faults.split(",") if name]
    removed = {name[1:] for name in named if name.startswith("-")}
    chosen = [name for name in named if not name.startswith("-")]
    if chosen in ([], ["all"]):
        chosen = [name for name in FAULTS if options.etcd or name not in ETCD_FAULTS]
    for name in [*chosen, *removed]:
        if name not in FAULTS:
            parser.error(f"no fault is called {name}; there are: {', '.join(FAULTS)}")
        if name in ETCD_FAULTS and not options.etcd:
            parser.error(f"{name} needs --etcd")
    options.faults = [name for name in chosen if name not in removed]
    if not options.faults:
        parser.error("no fault is left")
    if options.seconds <= 0 or options.rate <= 0:
        parser.error("--seconds and --rate must be above 0")
    return options


def show(report: dict, kept: Path | None, output: str) -> None:
    if kept:
        report["kept"] = str(kept)
    if output == "json":
        print(json.dumps(report, indent=2))
        return
    counts = report["counts"]
    print(f"{'right' if report['ok'] else 'WRONG'}: seed {report.get('seed')}, {len(report.get('faults', []))} faults; "
          + ", ".join(f"{value:,} {name}" for name, value in counts.items()))
    if settle := report.get("settle_seconds"):
        print(f"healed in {settle['median']} s (median), {settle['worst']} s at worst")
    for line in report["wrong"]:
        print(f"  {line}")
    for kind, count in report["violations"].items():
        print(f"  {count} × {kind}")
    if kept:
        print(f"histories and logs: {kept}")


def recheck(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos check", description="Judges kept histories again.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("-o", dest="output", choices=["text", "json"], default="text")
    options = parser.parse_args(arguments)
    if not any(options.folder.glob("*.jsonl")):
        parser.error(f"{options.folder} holds no histories")
    report = check(options.folder)
    shown = {"ok": report.ok, "counts": dict(report.counts), "violations": dict(report.violations), "wrong": report.shown}
    show(shown, None, options.output)
    return 0 if report.ok else 1


def interruptible() -> None:
    def interrupt(*_):
        raise KeyboardInterrupt

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, interrupt)


def measure(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos gaps", description="Measures what a producer sees of a leader that is killed, paused, cut off or "
        "stopped: the longest time between two acknowledgements. Needs root and, for figures, release builds.",
    )
    for kind, count in zip(gaps.KINDS, (20, 5, 5, 5)):
        parser.add_argument(f"--{kind}", type=int, default=count, metavar="N", help=f"{gaps.NAMES[kind]} (default: {count})")
    parser.add_argument("--per-second", type=int, default=2000, help="records sent (default: 2000)")
    parser.add_argument("--bin", type=Path, default=Path(os.environ.get("MEMQ_BIN", ROOT / ".build/release")),
                        help="executables (environment: MEMQ_BIN; default: .build/release)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep logs there")
    parser.add_argument("-o", dest="output", choices=["text", "json"], default="text", help="json: one document on stdout")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.inside:
        return outside(options.bin, ["gaps", *arguments])
    interruptible()
    keep = options.keep or options.inside / "kept"
    keep.mkdir(parents=True, exist_ok=True)
    report = gaps.Gaps(options, options.inside, keep).run()
    print(json.dumps(report, indent=2) if options.output == "json" else gaps.table(report))
    if not report["ok"]:
        say(f"wrong: {report['wrong']}")
    return 0 if report["ok"] else 1


def compare(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="scripts/chaos cost", description="Measures processor time of three copies against one, and the bytes that leaders send "
        "to followers. Needs root, release builds and 20 GiB of disk.",
    )
    parser.add_argument("--mib", type=int, default=1024, help="payload of a round (default: 1024)")
    parser.add_argument("--rounds", type=int, default=5, help="besides a first one that does not count (default: 5)")
    parser.add_argument("--bin", type=Path, default=Path(os.environ.get("MEMQ_BIN", ROOT / ".build/release")),
                        help="executables (environment: MEMQ_BIN; default: .build/release)")
    parser.add_argument("-o", dest="output", choices=["text", "json"], default="text", help="json: one document on stdout")
    parser.add_argument("--inside", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if not options.inside:
        return outside(options.bin, ["cost", *arguments])
    interruptible()
    report = cost.Cost(options, options.inside, options.inside / "kept").run()
    print(json.dumps(report, indent=2) if options.output == "json" else cost.table(report))
    return 0


def outside(binaries: Path, arguments: list[str]) -> int:
    missing = [n for n in ("memq", "memq-metadata", "memq-replication", "memq-ingest", "memq-uploader")
               if not (binaries / n).exists()]
    try:
        if missing:
            raise sandbox.Refused(f"{binaries} lacks {', '.join(missing)}: build first (swift build), or name the folder "
                                  "with --bin or MEMQ_BIN")
        return sandbox.run(arguments)
    except sandbox.Refused as reason:
        print(f"scripts/chaos: {reason}", file=sys.stderr)
        return 3


def inside(options: argparse.Namespace) -> int:
    interruptible()
    keep = options.keep or options.inside / "kept"
    keep.mkdir(parents=True, exist_ok=True)
    report = Run(options, options.inside, keep).run()
    kept = options.keep
    if not report["ok"] and kept is None:
        kept = Path(tempfile.gettempdir()) / f"chaos-failure-{options.seed}-{os.urandom(3).hex()}"
        shutil.copytree(keep, kept)
    if kept:
        (kept / "report.json").write_text(json.dumps(report, indent=2) + "\n")
    show(report, kept, options.output)
    if not report["ok"]:
        again = ",".join(options.faults)
        etcd = " --etcd" if options.etcd else ""
        say(f"again: scripts/chaos --seed {options.seed} --seconds {options.seconds:g}{etcd} --faults {again}")
    return 0 if report["ok"] else 1


def main(arguments: list[str]) -> int:
    if arguments[:1] == ["check"]:
        return recheck(arguments[1:])
    if arguments[:1] == ["gaps"]:
        return measure(arguments[1:])
    if arguments[:1] == ["cost"]:
        return compare(arguments[1:])
    options = parse(arguments)
    if options.etcd and not shutil.which("etcd"):
        print("scripts/chaos: --etcd needs the Debian package etcd-server; scripts/setup installs it", file=sys.stderr)
        return 3
    if options.inside:
        return inside(options)
    if options.seed is None:
        options.seed = random.randrange(1 << 31)
        arguments = [*arguments, "--seed", str(options.seed)]
    return outside(options.bin, arguments)


sys.exit(main(sys.argv[1:]))
