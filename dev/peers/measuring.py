"""All peers at all shapes, in rounds with ours."""

import contextlib
import signal
import statistics
import sys
import time

import fa3
import flashinfer_peers
import ours
import sdpa
from inputs import Inputs, Pool
from ours import Ended
from timing import MEASURES

LIBRARIES = (fa3.Library, flashinfer_peers.Library, sdpa.Library)
# By the type of K and V, over what is compared: ||got - want|| / ||want||. Over e4m3 XQA is off by
# 4 %, the others by what rounding to 16 bits gives.
MAX_RELATIVE_ERROR = {"bf16": 1e-2, "f16": 1e-2, "e4m3": 5e-2}


class TookTooLong(Exception):
    """A peer did."""


def terminated(*_):
    raise Ended("terminated")


class Row:
    """A shape in a mode: times of each round."""

    def __init__(self, shape, mode):
        self.shape, self.mode = shape, mode
        self.ours_us = []
        self.peers = {}

    def add(self, peer, us):
        new = {"us": [], "library": peer.library, "is_paged": peer.is_paged}
        new["relative_error"] = peer.relative_error
        self.peers.setdefault(peer.name, new)["us"].append(us)

    def best(self, is_paged, library=None):
        """Time and name of the fastest peer, of a library or of all, that reads pages, or contiguous
        K and V."""
        times = [
            (statistics.median(found["us"]), name)
            for name, found in self.peers.items()
            if found["is_paged"] == is_paged and library in (None, found["library"])
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


class Found:
    """What a run has found so far."""

    def __init__(self):
        self.rows = {}
        # `(shape, peer, why)`
        self.problems = []
        self.manifest = None

    def measured_rows(self):
        return [row for row in self.rows.values() if row.ours_us]


def measure(given, libraries, found):
    """All rounds."""
    pool = Pool()
    prepared = {}
    for round_idx in range(given.rounds):
        for mode in given.modes:
            check_time(given)
            say(f"round {round_idx + 1} of {given.rounds}, {mode}: ours")
            shapes, found.manifest = ours.run(given, mode)
            for shape, us in shapes:
                row = found.rows.setdefault((shape.pair, shape.name, mode), Row(shape, mode))
                row.ours_us.append(us)
                key = (shape.pair, shape.name)
                if key not in prepared:
                    say(f"preparing peers at {shape}")
                    prepared[key] = peers_at(given, shape, libraries, pool, found.problems)
                inputs, peers = prepared[key]
                for peer in peers:
                    check_time(given)
                    try:
                        with at_most(given.max_seconds):
                            row.add(peer, MEASURES[mode](peer, inputs))
                    except Ended:
                        raise
                    except Exception as error:
                        why = f"{mode}: {in_a_line(error)}"
                        found.problems.append((str(shape), peer.name, why))


def peers_at(given, shape, libraries, pool, problems):
    """Inputs of a shape, and the peers that are right at it."""
    right = []
    try:
        inputs = Inputs(shape, pool)
    except (KeyError, ValueError) as error:
        problems.append((str(shape), "all peers", in_a_line(error)))
        return None, right
    for library in libraries:
        for name, prepare in library.peers(inputs):
            if given.peers and not any(part.lower() in name.lower() for part in given.peers):
                continue
            check_time(given)
            try:
                with at_most(given.max_seconds):
                    peer = prepare()
                    peer.name, peer.library = name, library.name
                    peer.relative_error = peer.check(inputs)
            except Ended:
                raise
            except Exception as error:
                problems.append((str(shape), name, in_a_line(error)))
                continue
            if peer.relative_error <= MAX_RELATIVE_ERROR[shape.kv_element]:
                right.append(peer)
            else:
                problems.append((str(shape), name, f"wrong by {peer.relative_error:.1e}"))
    return inputs, right


def check_time(given):
    if time.monotonic() > given.ends:
        raise Ended(f"{given.total_seconds:.0f} seconds are over")


@contextlib.contextmanager
def at_most(seconds):
    """Ends what is in it after that time; what it compiles then ends, too."""

    def end(*_):
        raise TookTooLong(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, end)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def in_a_line(error):
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def say(text):
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
