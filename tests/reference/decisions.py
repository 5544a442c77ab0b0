"""Events and what a reference policy decides on them, one JSON object a line: `python3 decisions.py POLICY [EVENTS]`.

The first line tells the ranks, the seed of the policy and the age of its reports. Then
  {"reports": [[running, waiting, used, queued, waiting uncached, capacity, generated per s], ...] one per rank,
   "cached": [[rank, added runs, removed runs], ...]}
  {"arrive": [[id, prompt tokens, block runs, room, pin, turn], ...], "now": s, "decided": [[id, rank], ...]}
  {"first": [id, rank]}        {"finish": [id, rank]}
A run is [first block, blocks]. The loads of the ranks are invented and follow no policy, so all branches are met; arrivals
come alone and in batches, some with a forced rank, in bursts to one of them; some share prefixes.
"""
import json, random, sys

from request_policies import *

RANKS, SEED, STEP_S = 16, 7, 0.05


class Resubmitting:
    """A policy that leaves requests out gets them again, before the new ones."""

    def __init__(self, policy): self.policy, self.left = policy, []

    def __getattr__(self, name): return getattr(self.policy, name)

    def assign(self, requests, now):
        requests = self.left + requests
        decided = self.policy.assign(requests, now)
        self.left = [q for q in requests if q.id not in decided]
        return decided


class Buffering:
    """Requests wait until the first of them is an interval old."""

    def __init__(self, policy, interval): self.policy, self.interval, self.held, self.since = policy, interval, [], 0.0

    def __getattr__(self, name): return getattr(self.policy, name)

    def assign(self, requests, now):
        if not self.held:
            self.since = now
        self.held += requests
        if now - self.since < self.interval:
            return {}
        requests, self.held = self.held, []
        return self.policy.assign(requests, now)


POLICIES = {
    "sglang-round-robin": RoundRobin,
    "sglang-follow-room": SglFollowRoom,
    "sglang-total-requests": SglTotalRequests,
    "sglang-total-tokens": SglTotalTokens,
    "vllm-before-0.33": VllmScore4,
    "vllm-0.33": Vllm033,
    "smg-cache-aware": SmgCacheAware,
    "smg-power-of-two": SmgPowerOfTwo,
    "smg-least-load": SmgLeastLoad,
    "smg-dp-min-token": SmgDpMinToken,
    "vllm-router-smetric": VllmRouterSMetric,
    "vllm-router-smetric, objective, colocated": lambda n, seed: VllmRouterSMetric(n, seed, rate=20e3, colocated=True),
    "lmetric": LMetric,
    "dynamo-kv": DynamoKv,
    "dynamo-kv, decay, weights": lambda n, seed: DynamoKv(n, seed, credit=0.9, decay=0.5, scale=2.0, req_w=1.5),
    "dynamo-kv, temperature": lambda n, seed: DynamoKv(n, seed, temp=0.3),
    "dynamo-token-balance": DynamoTokenBalance,
    "dynamo-decode": DynamoDecode,
    "dynamo-decode, request weight": lambda n, seed: DynamoDecode(n, seed, req_w=40.0),
    "dynamo-rank-cohort": DynamoRankCohort,
    "llmd-default": LlmdDefault,
    "llmd-sticky-token-load": LlmdStickyTokenLoad,
    "tensorrt-llm-default-adp": TrtDefaultAdp,
    "tensorrt-llm-default-adp, most active": lambda n, seed: Resubmitting(TrtDefaultAdp(n, seed, max_active=40)),
    "tensorrt-llm-kv-aware-adp": TrtKvAwareAdp,
    "bf-io": BfIo,
    "bf-io, slots": lambda n, seed: BfIo(n, seed, slots=40),
    "staggered-decode": SbsDecode,
    "staggered-prefill": lambda n, seed: Buffering(SbsPrefill(n, seed), SbsPrefill.interval_s),
    "staggered-prefill, at once": SbsPrefill,
}


def blocks_of(runs): return tuple(first + k for first, count in runs for k in range(count))


class Engines:
    """Ranks whose loads wander and whose caches gain and lose prefixes."""

    def __init__(self, g, families):
        self.g, self.families, self.cached = g, families, [set() for _ in range(RANKS)]

    def rank(self, i, calm):
        g = self.g
        idle, queued = g.random() < 0.15, 0 if calm else g.randrange(60_000)
        return Rank(i, 0 if idle else g.randrange(60), 0 if calm or g.random() < 0.4 else g.randrange(12),
                    0 if idle else g.randrange(3000 if calm else 1 << 20), g.choice((0, queued)), g.randrange(40_000),
                    g.choice((400_000, 1 << 20)), g.choice((0.0, g.uniform(500.0, 4000.0))), self.cached[i])

    def change(self):
        """Adds a prefix to some caches and takes the tail of one from others."""
        changes = []
        for i in range(RANKS):
            added, removed = [], []
            if self.g.random() < 0.25:
                first, count = self.g.choice(self.families)
                cut = self.g.randrange(count + 1)
                if self.g.random() < 0.6:
                    added.append([first, cut])
                else:
                    removed.append([first + cut, count - cut])
            self.cached[i] |= set(blocks_of(added))
            self.cached[i] -= set(blocks_of(removed))
            if added or removed:
                changes.append([i, added, removed])
        return changes

    def report(self):
        changes, calm = self.change(), self.g.random() < 0.3
        ranks = [self.rank(i, calm) for i in range(RANKS)]
        rows = [[r.running, r.waiting, r.used_tokens, r.queued_tokens, r.waiting_uncached, r.cap_tokens, r.gen_tps] for r in ranks]
        return ranks, {"reports": rows, "cached": changes}


def request(g, number, families, pinned, hot):
    """`pinned`: most go to one rank.  `hot`: most share the longest prefix."""
    tail, prefix = min(1500, int(math.exp(g.gauss(2.0, 1.3)))), None
    if hot and g.random() < 0.7:
        tail, prefix = g.randrange(100, 125), families[0]
    elif g.random() < 0.7:
        first, count = g.choice(families)
        prefix = [first, g.randrange(1, count + 1)]
    runs = [run for run in (prefix, [(1 << 63) + (number << 16), tail]) if run and run[1]]
    isl = sum(count for _, count in runs) * BLOCK + g.randrange(1, BLOCK)
    if g.random() < 0.05:
        runs = []
    pin = 3 if pinned and g.random() < 0.7 else g.randrange(RANKS) if g.random() < 0.03 else None
    room = g.choice((None, g.randrange(1 << 40)))
    return [number, isl, runs, room, pin, g.randrange(3)]


def batch_size(g): return g.choice((0, 1, 1, 1, 1, 2, 3, 9))


def run(name, events, write):
    g, policy = random.Random(SEED + 1), POLICIES[name](RANKS, seed=SEED)
    families = [[1 << 32, 500]] + [[f << 32, g.randrange(1, 160)] for f in range(2, 40)]
    engines, prefilling, decoding, number, done, step, due = Engines(g, families), [], [], 0, 0, 0, 0.0
    # Dynamo hashes every prompt: blocks that a request does not name are its own.
    requests, named = {}, name.startswith("dynamo")
    write({"ranks": RANKS, "seed": SEED, "interval": policy.snapshot_s})
    while done < events:
        now, step = step * STEP_S, step + 1
        if now >= due:
            ranks, line = engines.report()
            policy.on_snapshot(ranks)
            write(line)
            due, done = now + policy.snapshot_s, done + 1
        pinned, hot = step % 200 < 20, 100 <= step % 200 < 150
        rows = [request(g, number + k, families, pinned, hot) for k in range(batch_size(g))]
        number += len(rows)
        own = lambda i, isl: [[(1 << 62) + (i << 16), isl // BLOCK]] if named else []
        batch = [Req(i, isl, blocks_of(runs or own(i, isl)), 0, room, pin, turn) for i, isl, runs, room, pin, turn in rows]
        decided = policy.assign(batch, now)
        requests.update((q.id, q) for q in batch)
        prefilling += decided.items()
        write({"arrive": rows, "now": now, "decided": sorted(decided.items())})
        done += len(rows)
        # Some 300 requests wait for their first token and 300 more run.
        while len(prefilling) > g.randrange(100, 400):
            i, rank = prefilling.pop(g.randrange(len(prefilling)))
            policy.on_first_token(requests[i], rank)
            decoding.append((i, rank))
            write({"first": [i, rank]})
            done += 1
        while len(decoding) > g.randrange(100, 400):
            i, rank = decoding.pop(g.randrange(len(decoding)))
            policy.on_finish(requests[i], rank)
            write({"finish": [i, rank]})
            done += 1


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 10_000, lambda line: print(json.dumps(line)))
