"""Measures other libraries beside ours, at our shapes, in one command:

    python3 dev/peers --host target/release/host paged_attention

What it finds in this Python is measured: FlashInfer, FlashAttention 3, PyTorch. What it does not
find is listed as not installed. Nothing of theirs is part of this project.

Each round runs `host run` and then the peers at the shapes that its results tell, so that drift
hits both. The protocol is the harness' own:

steady  a CUDA graph of many calls, each with other inputs than the last, so that caches are cold
single  one call into an idle stream, caches cold; theirs as a graph of one call, so that Python's
        own time is not in it

Before it is timed, a peer's output is compared with a reference in float32; a peer that is wrong is
told and not timed, and so is one that is missing, fails, or takes longer than `--max-seconds`. What
was measured is kept: at the end of `--total-seconds`, or when it is terminated, the command ends with
the results so far.
"""

import argparse
import json
import signal
import statistics
import sys
import time
from pathlib import Path

from ours import Ended
from shapes import TARGETS

MODES = ("steady", "single")


def arguments():
    parser = argparse.ArgumentParser(
        prog="dev/peers",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pairs", nargs="+", help="pairs of attention: paged_attention, ...")
    parser.add_argument("--host", default="target/release/host", help="our executable")
    parser.add_argument("--shapes", default="real", choices=("real", "tiny"))
    parser.add_argument("--only", action="append", default=[], help="shapes with this in their name, or =NAME")
    parser.add_argument("--targets", action="store_true", help="the shapes of the project's targets")
    parser.add_argument("--peers", action="append", default=[], help="peers with this in their name")
    parser.add_argument("--modes", default="steady,single", help="steady, single or both")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="most for ours at a shape, a round")
    parser.add_argument("--max-seconds", type=int, default=120, help="most for a peer at a shape")
    parser.add_argument("--total-seconds", type=float, help="begins nothing new after that")
    parser.add_argument("--fa3-library", help="file with FlashAttention 3's operators")
    parser.add_argument("--json", help="keeps all times in this file")
    given = parser.parse_args()
    given.modes = given.modes.split(",")
    unknown = set(given.modes) - set(MODES)
    if unknown or given.rounds < 1:
        parser.error("--modes must be of steady and single, --rounds at least 1")
    if given.targets:
        given.only += ["=" + name for pair in given.pairs for name in TARGETS.get(pair, ())]
    given.ends = time.monotonic() + (given.total_seconds or float("inf"))
    if not Path(given.host).exists():
        parser.error(f"--host {given.host}: no such file; `cargo build --release --bin host` makes it")
    return given


def table(rows, libraries):
    """What there is to know: ours and the best of each library, over pages, then over contiguous K
    and V, which is an easier task; and how much longer than ours the best over pages takes."""
    header = ["shape", "mode", "ours µs", *(f"{name} µs" for name in libraries)]
    lines = [(*header, "best over pages / ours", "best contiguous µs")]
    for row in rows:
        mine = statistics.median(row.ours_us)
        of_libraries = [told(row.best(is_paged=True, library=name), name) for name in libraries]
        paged, contiguous = row.best(is_paged=True), row.best(is_paged=False)
        ratio = f"{paged[0] / mine:.3f}" if paged else ""
        line = [str(row.shape), row.mode, f"{mine:.1f}", *of_libraries, ratio, told(contiguous)]
        lines.append(tuple(line))
    return lines


def told(best, library=""):
    """A time, and whose it is; of a library of which all is measured over contiguous K and V, none."""
    return f"{best[0]:.1f} ({best[1].removeprefix(library).strip(' ,')})" if best else ""


def all_times(rows):
    lines = [("shape", "mode", "what", "median µs", "rounds", "error")]
    for row in rows:
        rounds = lambda us: " ".join(f"{value:.1f}" for value in us)
        mine = (f"{statistics.median(row.ours_us):.1f}", rounds(row.ours_us), "")
        lines.append((str(row.shape), row.mode, "ours", *mine))
        by_time = sorted(row.peers.items(), key=lambda item: statistics.median(item[1]["us"]))
        for name, found in by_time:
            us = f"{statistics.median(found['us']):.1f}"
            error = f"{found['relative_error']:.1e}"
            lines.append((str(row.shape), row.mode, name, us, rounds(found["us"]), error))
    return lines


def show(lines):
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    for i, line in enumerate(lines):
        print("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |")
        if i == 0:
            print("|" + "|".join("-" * (width + 2) for width in widths) + "|")
    print()


def main():
    given = arguments()
    try:
        import torch
    except ImportError:
        sys.exit("PyTorch is not installed in this Python: no peer can be measured")
    if not torch.cuda.is_available():
        sys.exit("PyTorch finds no GPU: no peer can be measured")
    import measuring

    print(f"{torch.cuda.get_device_name()}, PyTorch {torch.__version__}")
    found = [library.find(given) for library in measuring.LIBRARIES]
    for library in found:
        print(f"{library.name}: {library.version or 'not installed'}")
    print(flush=True)
    installed = [library for library in found if library.version]
    found_so_far = measuring.Found()
    signal.signal(signal.SIGTERM, measuring.terminated)
    try:
        measuring.measure(given, installed, found_so_far)
    except Ended as ended:
        print(f"ended early: {ended}\n")
    rows, problems = found_so_far.measured_rows(), list(dict.fromkeys(found_so_far.problems))
    show(table(rows, [library.name for library in installed if library.reads_pages]))
    show(all_times(rows))
    for problem in problems:
        print("not measured: " + ", ".join(problem))
    if given.json and rows:
        manifest = found_so_far.manifest
        results = {
            "device": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "ours": {key: manifest[key] for key in ("commit", "dirty", "ptx", "started")},
            "libraries": {library.name: library.version or "not installed" for library in found},
            "rows": [row.as_json() for row in rows],
            "not_measured": problems,
        }
        Path(given.json).write_text(json.dumps(results, indent=1) + "\n")
    if not rows:
        sys.exit("nothing was measured")


if __name__ == "__main__":
    main()
