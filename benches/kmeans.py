"""The measurements of benches/kmeans, which calls this with a scratch directory."""
import argparse
import json
import os
import subprocess
import sys
import time
import warnings

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

warnings.filterwarnings("ignore")
parser = argparse.ArgumentParser()
parser.add_argument("scratch")
parser.add_argument("--rows", type=int, default=10_000_000)
parser.add_argument("--runs", type=int, default=3)
parser.add_argument("--spark", action="store_true")
parser.add_argument("--scale", action="store_true")
parser.add_argument("--train", action="store_true")
parser.add_argument("--only", default="")
args = parser.parse_args()
tercile = os.environ["TERCILE_BIN"]


def at(name):
    return os.path.join(args.scratch, name)


def make(name, columns, centroids):
    pq.write_table(pa.table(columns), at(name + ".parquet"))
    with open(at(name + ".json"), "w") as file:
        json.dump(centroids, file)


def shop(n):
    """Prices like a shop's, log-normal and whole; ratings and discounts with few different values; amounts that all differ."""
    rng = np.random.default_rng(7)
    return {
        "price": np.round(np.exp(rng.normal(7.0, 1.4, n))),
        "rating": np.round(np.clip(rng.normal(4.1, 0.35, n), 1, 5), 1),
        "discount": np.round(np.clip(rng.normal(47.0, 21.0, n), 0, 94)),
        "amount": np.exp(rng.normal(3.0, 1.0, n)),
    }


def eight(n):
    rng = np.random.default_rng(8)
    centres = rng.normal(0, 3, (16, 8))
    rows = centres[rng.integers(0, 16, n)] + rng.normal(0, 1, (n, 8))
    return {f"f{i}": rows[:, i] for i in range(8)}, rows[:16].tolist()


# The peer in a process of its own: read, standardise, fit, save; says what each took and how much memory it had.
PEER = """
import json, resource, sys, time
import numpy as np, pyarrow.parquet as pq
from sklearn.cluster import KMeans
file, features, k, init, tol, out = json.loads(sys.argv[1])
began = time.perf_counter()
table = pq.read_table(file, columns=features)
X = np.column_stack([table[name].to_numpy() for name in features])
mean, std = X.mean(axis=0), X.std(axis=0)
X -= mean
X /= std
read = time.perf_counter() - began
start = "k-means++" if init is None else (np.array(json.load(open(init))) - mean) / std
began = time.perf_counter()
model = KMeans(k, init=start, n_init=10 if init is None else 1, tol=tol, max_iter=300, random_state=0).fit(X)
fit = time.perf_counter() - began
json.dump((model.cluster_centers_ * std + mean).tolist(), open(out, "w"))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
print(json.dumps({"read": read, "fit": fit, "inertia": model.inertia_, "passes": model.n_iter_, "peak": peak}))
"""

SPARK = """
import json, sys, time
from pyspark.sql import SparkSession
from pyspark.ml.feature import VectorAssembler, StandardScaler
from pyspark.ml.clustering import KMeans
file, features, k, passes = json.loads(sys.argv[1])
began = time.perf_counter()
spark = SparkSession.builder.master("local[2]").config("spark.driver.memory", "8g").getOrCreate()
spark.sparkContext.setLogLevel("ERROR")
rows = VectorAssembler(inputCols=features, outputCol="raw").transform(spark.read.parquet(file))
scaler = StandardScaler(inputCol="raw", outputCol="features", withMean=True).fit(rows)
rows = scaler.transform(rows).select("features").cache()
rows.count()
read = time.perf_counter() - began
began = time.perf_counter()
# It takes no centroids to start from: so random rows, which cost it least, and as many passes as the others.
model = KMeans(k=k, seed=1, tol=0.0, maxIter=passes, initMode="random").fit(rows)
fit = time.perf_counter() - began
print(json.dumps({"read": read, "fit": fit, "inertia": model.summary.trainingCost, "passes": model.summary.numIter}))
"""


def best(run, runs=None):
    """The quickest of several runs, by whole seconds."""
    found = []
    for _ in range(runs or args.runs):
        began = time.perf_counter()
        report = run()
        found.append((report.get("wall", time.perf_counter() - began), report))
    return min(found, key=lambda one: one[0])


def ours(name, features, k, init, tol, *more):
    command = [tercile, "fit", at(name + ".parquet"), "--features", ",".join(features), "--json", "--output", at("ours.json")]
    command += ["--init", at(name + ".json")] if init else ["--k", str(k), "--n-init", "10"]
    if tol:
        command += ["--tol", str(tol)]
    # A child's memory begins as its parent's: so each has a small parent of its own, which also takes the time.
    code = "import resource, subprocess, sys, time; began = time.perf_counter(); " \
        "out = subprocess.run(sys.argv[1:], check=True, capture_output=True).stdout; took = time.perf_counter() - began; " \
        "print(took, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024); sys.stdout.write(out.decode())"
    out = subprocess.run([sys.executable, "-c", code, *command, *more], check=True, capture_output=True, text=True).stdout
    measured, text = out.split("\n", 1)
    wall, peak = map(float, measured.split())
    report = json.loads(text)
    return {**report["seconds"], "inertia": report["inertia"], "passes": report["iterations"], "peak": peak, "wall": wall}


def child(code, *values):
    return json.loads(subprocess.run([sys.executable, "-c", code, json.dumps(values)], check=True, capture_output=True).stdout)


def line(what, who, wall, report):
    passes = "-" if report["passes"] is None else report["passes"]
    print(f"{what:34} {who:13} {report['read']:7.3f} {report['fit']:8.3f} {wall:8.3f} {passes:>6} {report['inertia']:14.6e} "
          f"{report.get('peak', float('nan')):8.0f}", flush=True)


def compare(what, name, features, k, init, tol=0.0, linfa=False, spark=False):
    if args.only not in what:
        return
    peers = [("scikit-learn", lambda: child(PEER, at(name + ".parquet"), features, k, at(name + ".json") if init else None, tol, at("peer.json")))]
    if linfa:
        peers.append(("linfa", lambda: ours(name, features, k, init, tol, "--solver", "linfa")))
    if spark and args.spark:
        peers.append(("Spark MLlib", lambda: child(SPARK, at(name + ".parquet"), features, k, mine[1]["passes"])))
    mine = best(lambda: ours(name, features, k, init, tol), max(args.runs, 5))
    line(what, "tercile", *mine)
    for who, run in peers:
        theirs = best(run, 1 if who == "Spark MLlib" else None)
        line(what, who, *theirs)
        print(f"{'':34} {'':13} {theirs[1]['fit'] / mine[1]['fit']:.1f} times as long to fit, {theirs[0] / mine[0]:.1f} from file to model")


n = args.rows
millions = f"{n / 1e6:g} M"
table = shop(n)
make("shop", table, [[200, 4.0], [1500, 4.2], [8000, 4.1]])
make("one", {name: table[name] for name in ("discount", "amount")}, [[10], [40], [80]])
make("eight", *eight(n))
print(f"{'work':34} {'who':13} {'read s':>7} {'fit s':>8} {'whole s':>8} {'passes':>6} {'inertia':>14} {'peak MB':>8}")
compare(f"{millions} x 2, k 3, given", "shop", ["price", "rating"], 3, True, linfa=True, spark=True)
compare(f"{millions} x 2, k 3, given, tol 1e-4", "shop", ["price", "rating"], 3, True, tol=1e-4)
compare(f"{millions} x 2, k 3, 10 starts", "shop", ["price", "rating"], 3, False, tol=1e-4)
compare(f"{millions} x 1, 95 values, k 3", "one", ["discount"], 3, False, tol=1e-4, linfa=True)
compare(f"{millions} x 1, all differ, k 3", "one", ["amount"], 3, False, tol=1e-4)
compare(f"{millions} x 8, k 16, given", "eight", [f"f{i}" for i in range(8)], 16, True)

def picture(lines):
    """Seconds by rows, both logarithmic, as SVG; lines are (name, colour, [(rows, seconds)])."""
    x = lambda rows: 70 + (np.log10(rows) - 3) * 100
    y = lambda seconds: 330 - (np.log10(seconds) + 5) * 40
    out = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 380" font-family="sans-serif" font-size="12">',
           '<rect width="640" height="380" fill="#fff"/>']
    for power in range(3, 9):
        out.append(f'<path d="M{x(10**power):.0f} 50V330" stroke="#e3e3e3"/><text x="{x(10**power):.0f}" y="348" text-anchor="middle">{10**power:,}</text>')
    for power in range(-5, 3):
        out.append(f'<path d="M70 {y(10.0**power):.0f}H570" stroke="#e3e3e3"/><text x="62" y="{y(10.0**power) + 4:.0f}" text-anchor="end">{10.0**power:g} s</text>')
    out.append('<text x="320" y="370" text-anchor="middle">rows</text>'
               '<text x="70" y="30">20 passes over 2 features, k = 3, 2 cores, columns in memory</text>')
    for name, colour, points in lines:
        path = " ".join(f"{x(rows):.1f},{y(seconds):.1f}" for rows, seconds in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{x(rows):.1f}" cy="{y(seconds):.1f}" r="3.5" fill="{colour}"/>' for rows, seconds in points]
        out.append(f'<text x="{x(points[-1][0]) - 10:.0f}" y="{y(points[-1][1]) - 10:.0f}" text-anchor="end" fill="{colour}">{name}</text>')
    return "\n".join(out) + "\n</svg>\n"


if args.train:
    store = at("store")
    subprocess.run([sys.executable, "benches/store.py", store, str(n // 1_000_000)], check=True)
    out = subprocess.run([tercile, "train", "--store", store, "--sql", "sql", "--json"], check=True, capture_output=True).stdout
    trained = {}
    for one in json.loads(out):
        trained.setdefault(one["segmentation"], []).append(one)
    print("\nthree slices beside one fit of all their rows, as drawn starts find it, scores included")
    sums = [0.0, 0.0]
    for name, slices in trained.items():
        features = slices[0]["model"]["features"]
        with open(at("rows.parquet"), "wb") as file:
            ask = f"SELECT {', '.join(features)} FROM {name} ORDER BY _timestamp, _partition, _offset"
            subprocess.run([tercile, "sql", "--store", store, "--sql", "sql", "-f", "parquet", "-c", ask], check=True, stdout=file)
        command = [tercile, "fit", at("rows.parquet"), "--features", ",".join(features), "--k", str(slices[0]["model"]["k"]), "--json"]
        _, report = best(lambda: json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
        one = report["seconds"]["fit"] + report["seconds"]["score"]
        three = sum(found["seconds"]["train"] for found in slices)
        sums = [sums[0] + three, sums[1] + one]
        print(f"{name:14} SQL {slices[0]['seconds']['sql']:6.2f} s, three slices {three:6.3f} s, one fit {one:6.3f} s: {three / one:.2f} times")
    print(f"{'all':14} three slices {sums[0]:.3f} s, one fit each {sums[1]:.3f} s: {sums[0] / sums[1]:.2f} times", flush=True)

if args.scale:
    print("\nrows, seconds for 20 passes (x 2, k 3, given)")
    mine, theirs = [], []
    for power in range(3, 9):
        rows = 10**power
        make("scale", {name: column for name, column in shop(rows).items() if name in ("price", "rating")},
             [[200, 4.0], [1500, 4.2], [8000, 4.1]])
        _, report = best(lambda: ours("scale", ["price", "rating"], 3, True, 0.0, "--max-iter", "20"), 5 if power < 8 else 2)
        mine.append((rows, report["fit"]))
        said = f"{rows:>11,} tercile {report['fit']:10.6f} ({report['fit'] / report['passes'] / rows * 1e9:.3f} ns per row and pass)"
        if power < 8:
            code = PEER.replace("max_iter=300", "max_iter=20")
            _, peer = best(lambda: child(code, at("scale.parquet"), ["price", "rating"], 3, at("scale.json"), 0.0, at("peer.json")))
            theirs.append((rows, peer["fit"]))
            said += f"   scikit-learn {peer['fit']:10.6f}, {peer['fit'] / report['fit']:.1f} times as long"
        print(said, flush=True)
    with open("benches/scale.svg", "w") as file:
        file.write(picture([("tercile", "#0b6e4f", mine), ("scikit-learn", "#c1440e", theirs)]))
