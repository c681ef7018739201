"""Makes scikit-learn.json: what scikit-learn finds on the datasets that tests/models/truth.rs makes in the same way.

    python3 -m venv venv && venv/bin/pip install scikit-learn && OMP_NUM_THREADS=1 venv/bin/python tests/truth/make.py > tests/truth/scikit-learn.json

Only exact operations make the numbers (no exp, no sin), so both languages make the same ones to the bit.
"""
import json
import sys
import warnings

import numpy as np
import sklearn
from sklearn.cluster import KMeans

warnings.filterwarnings("ignore")
MASK = (1 << 64) - 1


def u(dataset, row, feature):
    """A number from 0 to 1 out of three counters (SplitMix64)."""
    z = (dataset * 0x9E3779B97F4A7C15 + row * 64 + feature) & MASK
    z = (z + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return float((z ^ (z >> 31)) >> 11) / float(1 << 53)


def hill(d, i, f):
    """Four numbers' sum: nearly normal, about 2."""
    return u(d, i, f) + u(d, i, f + 32) + u(d, i, f + 40) + u(d, i, f + 48)


def circle(d, i, f):
    t = 4.0 * u(d, i, 0) - 2.0
    return (1.0 - t * t) / (1.0 + t * t) if f == 0 else 2.0 * t / (1.0 + t * t)


# Name, rows, features, k, and the value of a row's feature.
DATASETS = [
    ("blobs", 900, 2, 3, lambda d, i, f: float(i % 3) * 3.0 + hill(d, i, f)),
    ("overlapping blobs", 1200, 2, 5, lambda d, i, f: float(i * (f + 1) % 5) * 0.8 + hill(d, i, f)),
    ("a square", 1000, 2, 4, lambda d, i, f: u(d, i, f)),
    ("a cube", 1000, 3, 8, lambda d, i, f: u(d, i, f)),
    ("a heavy tail", 1000, 1, 3, lambda d, i, f: u(d, i, f) / (1.0 - u(d, i, f))),
    ("two heavy tails", 1000, 2, 4, lambda d, i, f: u(d, i, f) / (1.0 - u(d, i, f))),
    ("a grid of duplicates", 1000, 2, 3, lambda d, i, f: float(int(u(d, i, f) * (7.0 - 2.0 * f)))),
    ("whole percents", 1465, 1, 3, lambda d, i, f: float(int(hill(d, i, f) * 24.0))),
    ("a constant feature", 500, 2, 3, lambda d, i, f: 7.25 if f == 0 else hill(d, i, f)),
    ("outliers", 1000, 2, 4, lambda d, i, f: 1e4 * (1.0 + f) if i % 400 == 399 else hill(d, i, f)),
    ("tiny", 5, 2, 3, lambda d, i, f: u(d, i, f)),
    ("as many clusters as rows", 6, 2, 6, lambda d, i, f: u(d, i, f)),
    ("two humps", 800, 1, 2, lambda d, i, f: float(i % 2) * 1.5 + hill(d, i, f)),
    ("eight features", 800, 8, 6, lambda d, i, f: float((i % 6) * (f + 1) % 7) + hill(d, i, f)),
    ("thirty-two features", 300, 32, 4, lambda d, i, f: float((i % 4) * (f + 1) % 5) + u(d, i, f)),
    ("a line", 1000, 2, 5, lambda d, i, f: u(d, i, 0) * (1.0 + f) + 0.1 * u(d, i, f + 1)),
    ("a circle", 1000, 2, 6, circle),
    ("far from zero", 1000, 2, 3, lambda d, i, f: 1e9 + u(d, i, f)),
    ("two scales", 1000, 2, 4, lambda d, i, f: u(d, i, f) * (1e-6 if f == 0 else 1e6)),
    ("many clusters", 2000, 2, 20, lambda d, i, f: float(i * (f * 3 + 1) % 20) + hill(d, i, f)),
    ("missing values", 1000, 2, 3, lambda d, i, f: None if (i + f) % 10 == 4 else float(i % 3) + hill(d, i, f)),
]



def us(d, i, f):
    """The same as u, for an array of rows."""
    z = np.uint64((d * 0x9E3779B97F4A7C15) & MASK) + i * np.uint64(64) + np.uint64(f)
    z = z + np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((z ^ (z >> np.uint64(31))) >> np.uint64(11)).astype(float) / float(1 << 53)


def hills(d, i, f):
    return us(d, i, f) + us(d, i, f + 32) + us(d, i, f + 40) + us(d, i, f + 48)


def wide(d, i, f):
    """Four wide groups in a square (of the first two features)."""
    return (i % np.uint64(4) >> np.uint64(f % 2)).astype(float) % 2.0 * 10.0 + hills(d, i, f)


def far(i, values, every, at):
    """Values of every so many-th row, far away."""
    return np.where(i % np.uint64(every) == np.uint64(every // 2), at, values)


def tail(d, i, f):
    return us(d, i, f) / (1.0 - us(d, i, f))


def rare(d, i, f):
    x = wide(d, i, f)
    for g, (every, x0, y0) in enumerate(((60_001, 300.0, 0.0), (20_011, 0.0, 300.0), (4_001, -300.0, -300.0))):
        x = far(i, x, every, (x0, y0)[f] + us(d, i, f + 8 + g))
    return x


def hidden(d, i, f):
    x = wide(d, i, f)
    for every, at in ((3_001, 100.0), (20_011, 10_000.0), (90_001, 1_000_000.0)):
        x = far(i, x, every, at * (1.0 - 2.0 * f) + at * 0.01 * us(d, i, f + 8))
    return x


def million(d, i, f):
    x = far(i, hills(d, i, f), 6_007, 40.0 * (f + 1.0) + us(d, i, f + 8))
    return far(i, x, 45_007, 1e6 * (us(d, i, f + 9) - 0.5))


# Many rows: name, rows, features, k, and the values of a feature. The best is that of ten restarts, scikit-learn's usual number.
LARGE = [
    ("rare groups", 200_000, 2, 7, rare),
    ("rare groups behind rarer ones", 300_000, 2, 7, hidden),
    ("points at a million deviations", 250_000, 3, 6, million),
    ("two heavy tails", 200_000, 2, 8, tail),
    ("heavy tails in six features", 200_000, 6, 5, tail),
    ("very heavy tails", 400_000, 2, 5, lambda d, i, f: tail(d, i, f) * tail(d, i, f)),
    ("equal rows", 300_000, 2, 6, lambda d, i, f: far(i, np.floor(us(d, i, f) * 2.0), 30_011, np.floor(us(d, i, f + 8) * 90.0))),
    ("sorted by group", 220_000, 2, 6, lambda d, i, f: far(i, (i // np.uint64(50_000)).astype(float) * 9.0, 50_021, 400.0) + hills(d, i, f)),
    ("rare groups among two million", 2_000_000, 2, 5, lambda d, i, f: far(i, wide(d, i, f), 600_011, 900.0 - 100.0 * f)),
]

large = []
for d, (name, rows, features, k, values) in enumerate(LARGE, start=100):
    i = np.arange(rows, dtype=np.uint64)
    X = np.stack([values(d, i, f) for f in range(features)], axis=1)
    X = (X - X.mean(axis=0)) / X.std(axis=0)
    best = KMeans(k, n_init=10, random_state=0).fit(X).inertia_
    large.append({"name": name, "rows": rows, "features": features, "k": k, "best": best})
    print(name, best, file=sys.stderr, flush=True)

found = []
for d, (name, rows, features, k, value) in enumerate(DATASETS):
    X = np.array([[np.nan if (v := value(d, i, f)) is None else v for f in range(features)] for i in range(rows)])
    X = np.where(np.isnan(X), np.nanmean(X, axis=0), X)
    std = X.std(axis=0)
    X = (X - X.mean(axis=0)) / np.where(std > 0, std, 1.0)
    given = KMeans(k, init=X[:k].copy(), n_init=1, tol=0).fit(X).inertia_
    best = KMeans(k, n_init=1000, random_state=0).fit(X).inertia_
    found.append({"name": name, "rows": rows, "features": features, "k": k, "given": given, "best": best})
    print(name, given, best, file=sys.stderr, flush=True)
print(json.dumps({"scikit-learn": sklearn.__version__, "datasets": found, "large": large}, indent=1))
