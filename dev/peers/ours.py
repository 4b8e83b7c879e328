"""What `host run` measures, and at which shapes."""

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from shapes import Shape


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
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if not results.exists() or done.returncode not in (0, 1):
            sys.exit(f"`{' '.join(command)}` failed:\n{done.stdout}")
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
