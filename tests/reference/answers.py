"""Questions and what a reference answers, one JSON pair a line: `python3 answers.py NAME [QUESTIONS]`.

Gates are asked once per iteration and remember; splits and plans are functions.
"""
import json, random, sys

from request_policies import *


def adp_wait_gate(g, timeout, batching, most):
    gate = TrtAdpWaitGate(timeout, batching, most)

    def ask():
        # Mostly all ranks have both kinds of work, so that the waits run out.
        ranks = [(g.random() < 0.97, g.random() < 0.99) for _ in range(4)]
        ranks = [(g.randrange(1, 9) if c else 0, g.randrange(1, 33) if d else 0) for c, d in ranks]
        return ranks, gate.allow(ranks)
    return ask


def prefill_delayer(g, passes, watermark):
    delayer = SglPrefillDelayer(passes, watermark)

    def ask():
        ranks = [(g.random() < 0.5, g.random() ** 0.2) for _ in range(4)]
        return ranks, delayer.allow(ranks)
    return ask


def prefill_cadence(g):
    def ask():
        interval, step = g.randrange(6), g.randrange(1000)
        return [interval, step], VllmPrefillCadence(interval).allow(step)
    return ask


def lengths(g): return [g.choice((1, 7, g.randrange(1, 50), int(g.lognormvariate(6, 2)) + 1)) for _ in range(g.randrange(1, 12))]


def two_batch_overlap(g):
    def ask():
        prompts = lengths(g)
        return prompts, sgl_tbo_split(prompts)
    return ask


def dual_batch_overlap(g):
    def ask():
        prompts, n = lengths(g), g.randrange(1, 5)
        return [prompts, n], vllm_dbo_split(prompts, n)
    return ask


def dyntra(g):
    """Block counts are so wide that no two swaps are equal: the reference takes equals as its sets are ordered."""
    def ask():
        rank = lambda: [[g.randrange(1, 1 << 30) >> g.randrange(20) for _ in range(g.randrange(most))] for most in (6, 4)]
        ranks = [rank() for _ in range(g.randrange(1, 5))]
        threshold, rounds, seqs = g.choice((5.0, 0.05, 1e6)), g.choice((1, 3, 1000)), g.choice((None, 4))
        return [ranks, threshold, rounds, seqs], dyntra_plan(ranks, threshold, rounds, seqs)
    return ask


def llumnix(g):
    def ask():
        load = [[round(g.uniform(0, 20), 1) for _ in range(3)] for _ in range(g.randrange(1, 9))]
        load = [(now, now - abs(o) / 5, now + i / 5) for now, o, i in load]
        threshold, balanced = g.choice((1e9, 8.0)), g.random() < 0.7
        return [load, threshold, balanced], llumnix_pairs(*zip(*load), threshold, balanced)
    return ask


NAMES = {
    "adp wait gate": lambda g: adp_wait_gate(g, 50, 10, 1 << 30),
    "adp wait gate, short": lambda g: adp_wait_gate(g, 3, 2, 32),
    "prefill delayer": lambda g: prefill_delayer(g, 30, None),
    "prefill delayer, watermark": lambda g: prefill_delayer(g, 4, 0.4),
    "prefill cadence": prefill_cadence,
    "two-batch overlap": two_batch_overlap,
    "dual-batch overlap": dual_batch_overlap,
    "dyntra": dyntra,
    "llumnix": llumnix,
}

if __name__ == "__main__":
    ask = NAMES[sys.argv[1]](random.Random(1))
    for _ in range(int(sys.argv[2]) if len(sys.argv) > 2 else 10_000):
        print(json.dumps(ask()))
