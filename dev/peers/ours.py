"""What `host run` measures, and at which shapes."""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from shapes import Shape


class Ended(Exception):
    """Nothing more can be measured."""


def run(given, mode):
    """`(shape, median microseconds)` of the optimized side, for each shape with sizes; and the
    manifest of the run, which tells the commit."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder) / "results.json"
        command = [given.host, "run", *given.pairs, "--device", "cuda", "--world-size", "1"]
        command += ["--shapes", given.shapes, "--mode", mode, "--max-seconds", str(given.seconds)]
        command += ["--json", str(results)]
        for part in given.only:
            command += ["--only", part]
        left = None if given.total_seconds is None else max(1, given.ends - time.monotonic())
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        try:
            done = subprocess.run(command, timeout=left, **output)
        except subprocess.TimeoutExpired:
            raise Ended(f"{given.total_seconds:.0f} seconds are over") from None
        if not results.exists() or done.returncode not in (0, 1):
            raise Ended(f"`{' '.join(command)}` failed:\n{done.stdout}")
        run = json.loads(results.read_text())
    found = []
    for entry in run["entries"]:
        name = f"{entry['target']}, {entry['shape']}"
        outcome = entry["outcome"]
        if outcome["kind"] != "measured":
            print(f"ours, {name}: {outcome.get('error') or outcome.get('reason')}", file=sys.stderr)
        elif "sizes" not in entry:
            print(f"ours, {name}: its results tell no sizes", file=sys.stderr)
        else:
            shape = Shape(entry["target"], entry["shape"], entry["sizes"])
            found.append((shape, outcome["optimized"]["time_us"]["median"]))
    return found, run["manifest"]
