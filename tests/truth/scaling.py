"""Makes scaling.csv and scaling.json: what scikit-learn's pipelines find with scaled and weighted features (tests/models/scaling.rs).

    python3 -m venv venv && venv/bin/pip install scikit-learn && OMP_NUM_THREADS=1 venv/bin/python tests/truth/scaling.py

A pipeline is SimpleImputer, log1p (of a feature with `log`), StandardScaler or RobustScaler or none, times the weight, and KMeans with
the best of 2,000 starts that run until assignments stop changing. Clusters are numbered by price, as tercile numbers them.
"""
import json
import pathlib

import numpy as np
import sklearn
from sklearn.cluster import KMeans
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import RobustScaler, StandardScaler

HERE = pathlib.Path(__file__).parent
ROWS = 700
FEATURES = ["price", "rating", "count"]
CASES = [
    ("log", {"count": "log"}, {}, 3),
    ("log of two", {"count": "log", "price": "log"}, {}, 4),
    ("robust", {"price": "robust"}, {}, 3),
    ("weights", {}, {"rating": 2.0, "count": 0.5}, 3),
    ("none", {"rating": "none"}, {}, 3),
    ("all", {"price": "log", "count": "robust", "rating": "none"}, {"count": 0.25, "price": 1.5}, 5),
]


def rows():
    """Prices and counts with heavy tails, ratings from 1 to 5; some are missing. Written as text, which both sides read."""
    rng = np.random.default_rng(20261129)
    group = rng.integers(0, 3, ROWS)
    price = np.round(np.exp(rng.normal(4.0 + 1.6 * group, 0.3)), 2)
    rating = np.round(np.clip(rng.normal(2.5 + 1.7 * (group == 1), 0.35), 1.0, 5.0), 1)
    count = np.floor(np.exp(rng.normal(2.0 + 3.5 * (group == 2), 0.8)))
    table = np.column_stack([price, rating, count])
    for column, share in enumerate([0.02, 0.03, 0.0]):
        table[rng.random(ROWS) < share, column] = np.nan
    return table


def scaled(table, scales, weights):
    columns = []
    for i, name in enumerate(FEATURES):
        column = table[:, [i]]
        scale = scales.get(name, "standard")
        if scale == "log":
            column = np.log1p(column)
        if scale in ("standard", "log"):
            column = StandardScaler().fit_transform(column)
        elif scale == "robust":
            column = RobustScaler().fit_transform(column)
        columns.append(column * weights.get(name, 1.0))
    return np.hstack(columns)


def found(table, scales, weights, k):
    z = scaled(table, scales, weights)
    best = KMeans(k, n_init=2000, max_iter=1000, tol=0, algorithm="lloyd", random_state=1).fit(z)
    labels = best.labels_
    centroids = np.zeros((k, len(FEATURES)))
    for i, name in enumerate(FEATURES):
        for cluster in range(k):
            values = table[labels == cluster, i]
            centroids[cluster, i] = np.expm1(np.log1p(values).mean()) if scales.get(name) == "log" else values.mean()
    order = np.argsort(centroids[:, 0])
    number = np.argsort(order)
    inertia = sum(((z[labels == c] - z[labels == c].mean(axis=0)) ** 2).sum() for c in range(k))
    distance = np.array([np.linalg.norm(z[i] - z[labels == labels[i]].mean(axis=0)) for i in range(len(z))])
    return {
        "inertia": inertia,
        "sizes": [int((labels == c).sum()) for c in order],
        "centroids": centroids[order].tolist(),
        "clusters": "".join(str(number[c]) for c in labels),
        "distances": distance[:20].tolist(),
    }


table = rows()
text = lambda value: "" if np.isnan(value) else repr(float(value))
lines = [",".join(["id", *FEATURES])] + [",".join([str(i), *map(text, row)]) for i, row in enumerate(table)]
(HERE / "scaling.csv").write_text("\n".join(lines) + "\n")
table = SimpleImputer().fit_transform(table)
cases = [
    {"name": name, "scale": scales, "weight": weights, "k": k, **found(table, scales, weights, k)}
    for name, scales, weights, k in CASES
]
(HERE / "scaling.json").write_text(json.dumps({"scikit-learn": sklearn.__version__, "cases": cases}, indent=1) + "\n")
