"""The parts of `benches/members` that compute or measure."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request


def inertia(file, model):
    import numpy as np
    import pandas as pd
    from sklearn.cluster import KMeans

    table = pd.read_csv(file, dtype=str).drop_duplicates("product_id", keep="last")
    price = pd.to_numeric(table["discounted_price"].str.replace("[₹,]", "", regex=True), errors="coerce")
    rating = pd.to_numeric(table["rating"], errors="coerce")
    rows = np.column_stack([price.fillna(price.mean()), rating.fillna(rating.mean())])
    rows = (rows - rows.mean(axis=0)) / rows.std(axis=0)
    best = KMeans(3, n_init=1000, random_state=0).fit(rows).inertia_
    ours = json.load(open(model))
    assert ours["rows"] == len(table), (ours["rows"], len(table))
    print(f"{len(table)} products, latest price and rating, k 3: inertia {ours['inertia']:.9g}, scikit-learn's best of 1,000 "
          f"restarts {best:.9g}; ratio {ours['inertia'] / best:.9f}")


PEER = """
import sys, time, duckdb, numpy as np
from sklearn.cluster import KMeans
began = time.perf_counter()
database = duckdb.connect()
database.execute("SET memory_limit = '1GB'; SET threads = 2")
database.execute(f\"\"\"CREATE VIEW orders AS
  SELECT _timestamp, _partition, _offset, order_id, upper(trim(customer_id)) AS customer_id, status,
    try_cast(replace(replace(amount, '₹', ''), ',', '') AS DOUBLE) * CASE status WHEN 'returned' THEN -1 ELSE 1 END AS amount,
    coalesce(try_cast(ordered_at AS TIMESTAMP), try_strptime(ordered_at, '%d/%m/%Y %H:%M')) AS ordered_at
  FROM read_parquet({sys.argv[1:]}) WHERE _error IS NULL\"\"\")
rows, = database.execute("SELECT count(*) FROM orders").fetchone()
for slice in (1, 2, 3):
    end = min(rows, slice * -(-rows // 3))
    cut = database.execute(f"SELECT _timestamp, _partition, _offset FROM orders ORDER BY ALL NULLS FIRST OFFSET {end - 1} LIMIT 1").fetchone()
    known = "(_timestamp, _partition, _offset) <= (?, ?, ?)"
    table = database.execute(f\"\"\"SELECT log10(1 + greatest(coalesce(sum(amount), 0), 0)), log10(count(DISTINCT order_id)),
        (epoch((SELECT max(ordered_at) FROM orders WHERE {known})) - epoch(max(ordered_at))) / 86400
      FROM orders WHERE {known} AND (status = 'ordered' OR amount < 0) GROUP BY customer_id\"\"\", cut + cut).fetchnumpy()
    columns = [np.ma.filled(column.astype(float), np.nan) for column in table.values()]
    columns = [np.where(np.isnan(column), np.nanmean(column), column) for column in columns]
    values = np.column_stack(columns)
    values = (values - values.mean(axis=0)) / values.std(axis=0)
    model = KMeans(4, n_init=10, random_state=0).fit(values)
    print(f"slice {slice}: {len(values)} customers, inertia {model.inertia_:.6g}", file=sys.stderr)
print(time.perf_counter() - began)
"""


def timed(command):
    """Seconds, peak memory in MB and the output of a process."""
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    output = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    assert status == 0, command
    return time.perf_counter() - began, used.ru_maxrss // 1024, output


def orders(tercile, store, sql, thousands):
    seconds, memory, output = timed([tercile, "-q", "train", "--store", store, "--sql", sql, "--memory-limit", "1GB"])
    print(output, end="")
    # A pattern would find small files beside the larger one that replaces them.
    files = subprocess.check_output([tercile, "files", "--store", store], text=True).splitlines()
    peer, peer_memory, _ = timed([sys.executable, "-c", PEER, *files])
    print(f"{int(thousands):,} thousand orders, RFM of three slices, k 4: tercile {seconds:.1f} s and {memory} MB within 1 GB; DuckDB and "
          f"scikit-learn {peer:.1f} s and {peer_memory} MB; {peer / seconds:.2f} times as fast")


def fetch(address, kind):
    began, size = time.perf_counter(), 0
    with urllib.request.urlopen(urllib.request.Request(address, headers={"Accept": kind})) as answer:
        while part := answer.read(1 << 20):
            size += len(part)
    return time.perf_counter() - began, size


def wrk(address, script, scratch):
    path = os.path.join(scratch, "wrk.lua")
    open(path, "w").write(script)
    said = subprocess.run(["wrk", "-t2", "-c16", "-d5", "--latency", "-s", path, address], capture_output=True, text=True, check=True).stdout
    assert "Non-2xx" not in said, said
    return float(re.search(r"Requests/sec:\s+([\d.]+)", said)[1]), re.search(r"\n\s+99%\s+([\d.]+\w+)", said)[1]


def serving(address, scratch):
    model = json.load(urllib.request.urlopen(f"{address}/api/segments/rfm/models/3"))
    for kind in ["text/csv", "application/vnd.apache.arrow.stream"]:
        taken = [fetch(f"{address}/api/segments/rfm/clusters/{cluster['cluster']}/members", kind) for cluster in model["clusters"]]
        seconds, size = sum(one[0] for one in taken), sum(one[1] for one in taken)
        print(f"{model['rows']:,} members as {kind}: {seconds:.2f} s, {model['rows'] / seconds:,.0f} members a second, {size / 1e6:.0f} MB")
    keys = []
    for cluster in model["clusters"]:
        page = json.load(urllib.request.urlopen(f"{address}/api/segments/rfm/clusters/{cluster['cluster']}/members?limit=10000"))
        keys += [one["key"]["customer_id"] for one in page["members"]][:: 10]
    listed = ", ".join(f'"{key}"' for key in keys)
    row = json.dumps([dict(zip(model["features"], model["mean"]))])
    predict = (f"wrk.method = 'POST'\nwrk.path = '/api/segments/rfm/predict'\nwrk.body = '{row}'\n"
               "wrk.headers['Content-Type'] = 'application/json'\n")
    look_up = f"local keys = {{{listed}}}\nlocal at = 0\nrequest = function()\n  at = at % #keys + 1\n" \
              "  return wrk.format('GET', '/api/segments/rfm/members/' .. keys[at])\nend\n"
    of_one = sorted(wrk(address, predict, scratch) for _ in range(3))[1]
    of_key = sorted(wrk(address, look_up, scratch) for _ in range(3))[1]
    print(f"16 connections, medians of three: one key {of_key[0]:,.0f} requests a second, p99 {of_key[1]}; one prediction "
          f"{of_one[0]:,.0f}, p99 {of_one[1]}; ratio {of_key[0] / of_one[0]:.2f}")


if __name__ == "__main__":
    {"inertia": inertia, "orders": orders, "serving": serving}[sys.argv[1]](*sys.argv[2:])
