"""All peers at all shapes, in rounds with ours."""

import statistics
import sys
import time

import fa3
import flashinfer_peers
import ours
import sdpa
from inputs import Inputs, Pool
from timing import MEASURES

LIBRARIES = (fa3.Library, flashinfer_peers.Library, sdpa.Library)
# By the type of K and V, over what is compared: ||got - want|| / ||want||. Over e4m3 XQA is off by
# 4 %, the others by what rounding to 16 bits gives.
MAX_RELATIVE_ERROR = {"bf16": 1e-2, "f16": 1e-2, "e4m3": 5e-2}


class Row:
    """A shape in a mode: times of each round."""

    def __init__(self, shape, mode):
        self.shape, self.mode = shape, mode
        self.ours_us = []
        self.peers = {}

    def add(self, peer, us):
        new = {"us": [], "is_paged": peer.is_paged, "relative_error": peer.relative_error}
        self.peers.setdefault(peer.name, new)["us"].append(us)

    def best(self, is_paged):
        """Time and name of the fastest peer that reads pages, or contiguous K and V."""
        times = [
            (statistics.median(found["us"]), name)
            for name, found in self.peers.items()
            if found["is_paged"] == is_paged
        ]
        return min(times, default=None)

    def as_json(self):
        return {
            "pair": self.shape.pair,
            "shape": self.shape.name,
            "sizes": self.shape.sizes,
            "mode": self.mode,
            "ours_us": self.ours_us,
            "peers": self.peers,
        }


def measure(given, libraries):
    """All rows, what could not be measured as `(shape, peer, why)`, and the manifest of ours."""
    pool = Pool()
    rows, prepared, problems = {}, {}, []
    for round_idx in range(given.rounds):
        for mode in given.modes:
            say(f"round {round_idx + 1} of {given.rounds}, {mode}: ours")
            found, manifest = ours.run(given, mode)
            for shape, us in found:
                row = rows.setdefault((shape.pair, shape.name, mode), Row(shape, mode))
                row.ours_us.append(us)
            for (_, name, row_mode), row in rows.items():
                if row_mode != mode:
                    continue
                key = (row.shape.pair, name)
                if key not in prepared:
                    say(f"preparing peers at {row.shape}")
                    prepared[key] = peers_at(row.shape, libraries, pool, given.peers, problems)
                inputs, peers = prepared[key]
                for peer in peers:
                    try:
                        row.add(peer, MEASURES[mode](peer, inputs))
                    except Exception as error:
                        problems.append((str(row.shape), peer.name, f"{mode}: {in_a_line(error)}"))
    # One line for what failed in every round.
    return list(rows.values()), list(dict.fromkeys(problems)), manifest


def peers_at(shape, libraries, pool, wanted, problems):
    """Inputs of a shape, and the peers that are right at it."""
    right = []
    try:
        inputs = Inputs(shape, pool)
    except (KeyError, ValueError) as error:
        problems.append((str(shape), "all peers", in_a_line(error)))
        return None, right
    for library in libraries:
        for name, prepare in library.peers(inputs):
            if wanted and not any(part.lower() in name.lower() for part in wanted):
                continue
            try:
                peer = prepare()
                peer.name = name
                peer.relative_error = peer.check(inputs)
            except Exception as error:
                problems.append((str(shape), name, in_a_line(error)))
                continue
            if peer.relative_error <= MAX_RELATIVE_ERROR[shape.kv_element]:
                right.append(peer)
            else:
                problems.append((str(shape), name, f"wrong by {peer.relative_error:.1e}"))
    return inputs, right


def in_a_line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
