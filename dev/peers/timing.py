"""Times of a peer, by the harness' protocol."""

import statistics

import torch

from inputs import DEVICE

# As in the harness: what a steady sample takes, most calls of one, the share that goes before it.
SAMPLE_US = 2000.0
MAX_CALLS = 512
LEAD_SHARE = 8
NUM_WARMUPS = 3
NUM_SAMPLES = 21
FLUSH_BYTES = 256 << 20

_flush = None


def steady_us(peer, inputs):
    """Median microseconds of a call, of many in one graph through all sets of inputs."""
    run_all_once(peer)
    wanted = min(max(1, int(SAMPLE_US / max(1.0, eager_us(peer)))), MAX_CALLS)
    num_calls = -(-wanted // inputs.num_sets) * inputs.num_sets
    num_lead = num_calls // LEAD_SHARE
    graph = captured(peer, range(num_calls))
    # The last inputs of the rotation: the first ones have to stay out of the cache.
    lead = captured(peer, range(num_calls - num_lead, num_calls)) if num_lead else None

    def sample():
        if lead:
            lead.replay()
        return between_events(graph.replay) / num_calls

    return median_of(sample)


def single_us(peer, inputs):
    """Median microseconds of one call, a graph of its own, into an idle stream with cold caches."""
    run_all_once(peer)
    graphs = [captured(peer, [i]) for i in range(min(2, inputs.num_sets))]
    turn = 0

    def sample():
        nonlocal turn
        flush_caches(turn)
        torch.cuda.synchronize()
        turn += 1
        return between_events(graphs[turn % len(graphs)].replay)

    return median_of(sample)


MEASURES = {"steady": steady_us, "single": single_us}


def run_all_once(peer):
    for call in peer.calls:
        call()
    torch.cuda.synchronize()


def eager_us(peer):
    return between_events(peer.calls[0])


def captured(peer, calls):
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            peer.calls[call % len(peer.calls)]()
    return graph


def between_events(work):
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    work()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) * 1e3


def median_of(sample):
    for _ in range(NUM_WARMUPS):
        sample()
    return statistics.median(sample() for _ in range(NUM_SAMPLES))


def flush_caches(value):
    global _flush
    if _flush is None:
        _flush = torch.empty(FLUSH_BYTES // 4, dtype=torch.int32, device=DEVICE)
    _flush.fill_(value)
