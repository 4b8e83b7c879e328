"""Copies the executables that cargo reports on stdin into a bundle, and lists them there.

Used by bundle.sh; the layout of the bundle is told there.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

bundle = Path(sys.argv[1])
root = Path.cwd()


def ignored_tests(executable, package_dir):
    """Name and reason of each ignored test. Only libtest's JSON, still unstable, tells reasons."""
    listing = subprocess.run(
        [executable, "--list", "--ignored", "-Zunstable-options", "--format=json"],
        env={**os.environ, "RUSTC_BOOTSTRAP": "1"},
        cwd=package_dir,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    for line in listing.stdout.splitlines():
        event = json.loads(line)
        if event["type"] == "test":
            yield event["name"], event.get("ignore_message", "")


tests, gpu_tests = set(), set()
for line in sys.stdin:
    message = json.loads(line)
    executable = message.get("executable")
    if message["reason"] != "compiler-artifact" or not executable:
        continue
    kind = message["target"]["kind"][0]
    package_dir = Path(message["manifest_path"]).parent
    if kind == "bench":
        shutil.copy(executable, bundle / "benches" / message["target"]["name"])
    elif not message["profile"]["test"]:
        shutil.copy(executable, bundle / "bin" / message["target"]["name"])
    else:
        # Cargo's name, less its hash; a library and a program may share it.
        package = package_dir.name if package_dir != root else "host"
        name = f"{package}-{kind}-{message['target']['name']}"
        shutil.copy(executable, bundle / "tests" / name)
        tests.add((os.path.relpath(package_dir, root), name))
        for test, reason in ignored_tests(executable, package_dir):
            needed = re.fullmatch(r"needs (\d+) GPUs?", reason)
            if needed:
                gpu_tests.add((needed[1], name, test))
            else:
                print(f"left out: {name} {test}: ignored for {reason!r}, not for GPUs")

for folder, _ in tests:
    (bundle / "root" / folder).mkdir(parents=True, exist_ok=True)
for name, rows in (("tests.tsv", tests), ("gpu-tests.tsv", gpu_tests)):
    lines = ("\t".join(row) + "\n" for row in sorted(rows))
    (bundle / name).write_text("".join(lines))
