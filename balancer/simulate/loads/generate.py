"""Writes the synthetic expert loads of the expert placement bench as .npy files.

    generate.py FOLDER

Every file is int64, [layers, experts]; batches are [batches * layers, experts], batch after batch. A base load is
log-normal ("ln1.0": sigma 1.0) or a permutation per layer of 1 / rank^s ("zipf0.8"), each layer scaled to
ROUTED assignments. A drifted copy ("-drift10") is the same base times an independent log-normal of sigma .1; batches
("-noise10") are such copies of one base, drawn one after the other. All are rounded, and at least 1.

The files are a function of the names alone: the seed, the distribution and the shape seed one generator each. Another
NumPy may draw otherwise, so its version is pinned and the digests are kept beside this script.
"""

import pathlib
import sys

import numpy

ROUTED = 2_097_152
SEEDS = (0, 1, 2, 3)  # 0 to 2 are for the tables; nothing is ever tuned on 3
DRIFTS = (0.1, 0.2)
BATCHES = 8

# Distributions with a number of their own; any other exponent s has 100 + 100 * s.
NUMBERS = {("ln", 0.5): 0, ("ln", 1.0): 1, ("zipf", 0.8): 2, ("zipf", 1.2): 3}

# (layers, experts) -> distributions
SHAPES = {
    (58, 256): [("ln", 0.3), ("ln", 0.5), ("ln", 1.0), ("zipf", 0.4), ("zipf", 0.6), ("zipf", 0.8), ("zipf", 1.2)],
    (94, 128): [("ln", 0.5), ("ln", 1.0), ("zipf", 0.8), ("zipf", 1.2)],
    (60, 384): [("ln", 0.5), ("ln", 1.0), ("zipf", 0.8), ("zipf", 1.2)],
}
NOISY = {((58, 256), ("ln", 0.5))}


def generator(seed, kind, exponent, layers, experts):
    number = NUMBERS.get((kind, exponent), round(100 + 100 * exponent))
    return numpy.random.default_rng([seed, number, experts, layers])


def base(rng, kind, exponent, layers, experts):
    """The loads before rounding; drifts are drawn next from the same generator."""
    if kind == "ln":
        loads = rng.lognormal(0, exponent, (layers, experts))
    else:
        ranked = 1 / numpy.arange(1, experts + 1) ** exponent
        loads = numpy.stack([rng.permutation(ranked) for _ in range(layers)])
    return loads * (ROUTED / loads.sum(axis=1, keepdims=True))


def counts(loads):
    return numpy.maximum(numpy.rint(loads), 1).astype("<i8")


def files():
    """Yields every file's name and counts."""
    for shape, distributions in SHAPES.items():
        for distribution in distributions:
            for seed in SEEDS:
                (layers, experts), (kind, exponent) = shape, distribution
                name = f"{layers}x{experts}-{kind}{exponent}-seed{seed}"

                def drifted(drift, copies):
                    rng = generator(seed, kind, exponent, layers, experts)
                    loads = base(rng, kind, exponent, layers, experts)
                    copies = [loads * rng.lognormal(0, drift, shape) if drift else loads for _ in range(copies)]
                    return counts(numpy.concatenate(copies))

                yield name, drifted(0, 1)
                for drift in DRIFTS:
                    yield f"{name}-drift{drift * 100:.0f}", drifted(drift, 1)
                    if (shape, distribution) in NOISY:
                        yield f"{name}-noise{drift * 100:.0f}", drifted(drift, BATCHES)


def main():
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in files():
        numpy.save(folder / f"{name}.npy", table)


if __name__ == "__main__":
    main()
