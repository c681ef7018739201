#!/usr/bin/env python3
"""What tercile costs at a rate of records, and where the next wall is, worked out from unit costs.
    docs/scale.py --rates 5e4 --record-bytes 800 --costs mine.json --cores 64       {"small_rate": 400000} and the like
    docs/scale.py --markdown    what stands between the markers in docs/scale.md
    docs/scale.py --check       exit 1 if docs/scale.md says anything else
"""
import argparse, json, math, pathlib, sys

PAGE, BEGIN, END = pathlib.Path(__file__).with_name("scale.md"), "<!-- scale.py: begin -->", "<!-- scale.py: end -->"
DAY, SMALL, LARGE, SLICES = 86_400, 190, 3_500, 2  # a third, two thirds and all of the rows: twice as many
# In the source: crates/store/src/compact.rs, objects.rs and objects/lease.rs; src/train.rs and cli/up.rs; crates/cluster/src/session.rs.
ROLL_FILES, PAGE_NAMES, BEAT, SORT_BYTES, MOST_ROWS, TENTH, PLAN_FILES = 16, 900, 3, 128, 2**32, 0.1, 2**28 / 200
UNITS = [  # name, value, of what, kind, where it is from
    ("small_rate", 627_000, "records/s of 190 bytes, one partition", "measured", "`benches/ingest`"),
    ("large_rate", 92_000, "records/s of 3.5 KB, one partition", "measured", "`benches/ingest`"),
    ("decode_share", 0.6, "of ingest's processor time: a partition's decoding thread", "measured", "benches/README.md, Ingest"),
    ("parquet_share", 0.2, "of the same: writing Parquet", "measured", "benches/README.md, Ingest"),
    ("sql_us", 0.733, "core-µs of SQL, record and segmentation: 11 s for 10 million, 3", "measured", "`benches/kmeans --train`"),
    ("serial_us", 0.753, "the same where sorts spill, on one thread: 22.6 s", "measured", "benches/README.md, More than memory"),
    ("pass_ns", 1.4, "core-ns, row and pass, 2 features, k 3: 0.70 ns on 2 cores", "measured", "`benches/kmeans --scale`"),
    ("passes", 44, "passes until nothing changes", "measured", "`benches/kmeans`"),
    ("serve_rate", 59_100, "requests/s of three rows, one answering thread", "measured", "`benches/serve`"),
    ("batch_rows", 100_000, "records in a file, at most", "built in", "`--batch-rows`"),
    ("batch_bytes", 2**26, "bytes of records in a file, at most", "built in", "`--batch-bytes`"),
    ("batch_age", 5, "s until a record is stored", "built in", "`--batch-age`"),
    ("ingest_memory", 2**30, "bytes; a file gets an eighth of its partition's share", "built in", "`ingest --memory-limit`"),
    ("upkeep", 30, "s between two rounds of rolling", "built in", "`--upkeep`"),
    ("roll_bytes", 2**27, "bytes of a rolled file", "built in", "`--roll-bytes`"),
    ("grace", DAY, "s that a replaced file stays", "built in", "`--grace`"),
    ("parts", 16, "parts of a query on a cluster, so cores that work on it", "built in", "`--engine df://…?parts=`"),
    ("parquet_ratio", 0.25, "Parquet bytes to a record's: `du -sb store/records`", "guess", "0.12 for generated rows"),
    ("roll_reading", 2.0, "rolling, which reads and writes, to writing alone", "guess", "not measured"),
    ("cluster_factor", 2.0, "time on a cluster to that in one process, on the same cores", "measured", "`benches/cluster`"),
    ("driver_ns", 78, "ns a row: what trains on a cluster reads and hashes all, in order", "measured", "the same: 5.6 s of its processor time"),
    ("request_ms", 20, "ms for a request to the object store", "guess", "as in operations.md"),
    ("put_limit", 3_500, "puts and deletes/s of a prefix", "published", "S3"),
    ("get_limit", 5_500, "reads/s of a prefix", "published", "S3"),
    ("cores", 16, "cores of a machine", "chosen", ""),
    ("memory", 64e9, "bytes of its memory", "chosen", "64 GB"),
    ("network", 25e9 / 8, "bytes/s of its network card", "chosen", "25 Gbit/s"),
    ("disk", 30e12, "bytes of its disks", "chosen", "30 TB"),
    ("disk_rate", 2e9, "bytes/s that they read", "chosen", ""),
    ("headroom", 0.7, "of what a thing can do that is planned with", "chosen", ""),
    ("segmentations", 3, "segmentations", "chosen", "as shipped"),
    ("features", 2, "features of each; of the shipped ones one has 1", "chosen", "as shipped"),
    ("deadline", 900, "s that a training may take", "chosen", ""),
    ("retention_days", 30, "days of history kept and trained on", "chosen", ""),
    ("predictions_per_second", 1_000_000, "requests/s of three rows", "chosen", ""),
]

def crossing(ratio):
    low, high = -3.0, 18.0  # powers of ten; between them the x at which a ratio that grows comes to be more than 1
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if ratio(10**middle) > 1 else (middle, high)
    return 10**high

class Plan:
    """What follows from a rate and a record's size, with so many processes of ingest, or as many as it takes."""
    def __init__(self, u, rate, size, processes=None):
        self.u, self.rate, self.size = u, rate, size
        by_byte = (1 / u.large_rate - 1 / u.small_rate) / (LARGE - SMALL)  # a record costs a constant and so much a byte
        decode = max(1 / u.small_rate + by_byte * (size - SMALL), 0.1 / u.small_rate)
        self.partition_ratio = rate * decode / u.headroom
        self.partitions, self.cores = math.ceil(self.partition_ratio), rate * decode / u.decode_share
        self.bytes_in, self.parquet = rate * size, rate * size * u.parquet_ratio
        self.by_cores, self.by_network = self.cores / u.cores / u.headroom, self.bytes_in / u.network / u.headroom
        self.machines = math.ceil(max(self.by_cores, self.by_network))
        self.store(processes or self.machines)
        if not processes:  # rolling is one thread of each process
            self.store(min(self.partitions, max(self.machines, math.ceil(self.rolling / u.headroom))))
        self.rows, self.disk = rate * DAY * u.retention_days, self.parquet * (DAY * u.retention_days + u.grace)
        self.large_files = max(self.parquet * DAY / u.roll_bytes, self.partitions)
        per_row = u.segmentations * u.sql_us / 1e6 + self.passes_s(1)
        self.driver_s, core_s = self.rows * u.segmentations * u.driver_ns / 1e9, self.rows * per_row * u.cluster_factor
        self.cluster_s, self.executors = core_s / u.parts + self.driver_s, math.ceil(core_s / u.deadline / u.cores / u.headroom)
        self.share = (max(u.memory / 2, 256e6) - (160 << 20)) / 3  # of a training's memory, for its sorts
        self.train_s = self.train(self.rows)
        self.retrain = self.train_s / (TENTH * DAY * u.retention_days)
        self.servers = math.ceil(u.predictions_per_second / u.serve_rate / max(u.cores - 1, 1) / u.headroom)

    def store(self, processes):
        u, self.processes, each = self.u, processes, self.rate / self.partitions
        batch = min(u.batch_bytes, u.ingest_memory / 8 / math.ceil(self.partitions / processes))
        seconds = max(min(u.batch_age, u.batch_rows / each, batch / each / self.size), 1 / each)
        self.files_s, file_bytes = self.partitions / seconds, each * seconds * self.size * u.parquet_ratio
        rewrites = 1 + max(0, math.log2(u.roll_bytes / file_bytes / max(ROLL_FILES, u.upkeep / seconds)))
        self.rolling = self.cores * u.parquet_share * u.roll_reading * rewrites
        waiting = self.files_s * u.grace
        rolled = rewrites * self.parquet * u.grace / u.roll_bytes  # those that cover what is still there
        self.asking = rolled / processes * u.request_ms / 1000  # one request a round for each, one after the other
        rounds, pages = self.partitions / (u.upkeep + self.asking), math.ceil(waiting / self.partitions / PAGE_NAMES)
        self.leases = 2 * rounds + processes / BEAT
        self.puts = 2 * self.files_s + rewrites * self.parquet / u.roll_bytes + self.leases
        self.reads = self.files_s * (2 + rewrites * (2 + math.ceil(file_bytes / 2**22)))  # lists, and what is rolled
        self.reads += rounds * (3 * pages + rolled / self.partitions)

    def passes_s(self, rows):
        return rows * self.u.segmentations * self.u.passes * SLICES * self.u.pass_ns / 1e9 * self.u.features / 2

    def train(self, rows):
        """Seconds on one machine: SQL on one thread where its sorts would spill, passes from disk beyond memory."""
        u, passes = self.u, self.passes_s(rows) / self.u.cores
        if (bytes_read := rows * 8 * u.features) > u.memory:
            passes += bytes_read * u.segmentations * u.passes * SLICES / u.disk_rate
        serial = rows * SORT_BYTES > self.share
        return rows * u.segmentations * (u.serial_us if serial else u.sql_us / u.cores) / 1e6 + passes

WALLS = [  # name, how far beyond it a plan with one process is, what to do
    ("ingest: a partition's decoding thread", lambda p: p.partition_ratio, "more partitions"),
    ("ingest: one machine's cores", lambda p: p.by_cores, "more machines, `--group`"),
    ("ingest: its network card", lambda p: p.by_network, "more machines, `--group`"),
    ("rolling: one thread of a process", lambda p: p.rolling / p.u.headroom, "more workers, also on one machine"),
    ("object store: a round asks for each rolled file in its grace", lambda p: p.asking / p.u.upkeep, "a shorter `--grace`, more workers"),
    ("object store: one prefix", lambda p: max(p.puts / p.u.put_limit, p.reads / p.u.get_limit), "larger files; S3 splits it"),
    ("one machine's disks", lambda p: p.disk / p.u.disk / p.u.headroom, "an object store; `--keep-for`"),
    ("training: sorts spill, so one thread", lambda p: p.rows * SORT_BYTES / p.share, "`train --memory-limit`; a sampled topic"),
    ("training: features beyond memory", lambda p: p.rows * 8 * p.u.features / p.u.memory, "memory; a sampled topic"),
    ("training: 2^32 rows", lambda p: p.rows / MOST_ROWS, "a sampled topic; more are refused"),
    ("training: one machine, in time", lambda p: p.train_s / p.u.deadline, "a sampled topic; a cluster"),
    ("training at each tenth, one machine", lambda p: p.retrain, "`train` at set times, not `up`"),
    ("cluster: its parts, in time", lambda p: p.cluster_s / p.u.deadline, "a sampled topic; more `?parts=`"),
    ("cluster: its driver, in time", lambda p: p.driver_s / p.u.deadline, "a sampled topic; incremental training (not built)"),
    ("cluster: files in a plan", lambda p: p.large_files * p.u.retention_days / PLAN_FILES, "larger `--roll-bytes`"),
]

def short(n, unit=""):
    prefixes = ["", "k", "M", "G", "T", "P"] if unit else ["", " thousand", " million", " billion", " trillion"]
    while n >= 999.5 and prefixes[1:]:
        n, prefixes = n / 1000, prefixes[1:]
    return (f"{n:,.0f}" if n >= 10 or n == int(n) else f"{n:.2g}") + (" " + prefixes[0] + unit if unit else prefixes[0])

def span(s):
    size, unit = (1, "s") if s < 120 else (60, "min") if s < 7200 else (3600, "h") if s < 2 * DAY else (DAY, "days")
    return f"{s / size:,.0f} {unit}" if s >= 10 * size else f"{s / size:.2g} {unit}"

def figures(p, walls):
    u, ahead = p.u, [(at, name) for at, (name, *_) in zip(walls, WALLS) if at > p.rate]
    most = crossing(lambda rows: p.train(rows) / u.deadline)
    return {
        f"records of {p.size:,g} bytes": f"{short(p.rate)}/s",
        "network in": short(p.bytes_in, "B/s"),
        "Kafka partitions": f"{p.partitions:,}",
        f"ingest: cores; machines of {u.cores:g}": f"{short(p.cores)}; {p.machines:,}",
        "workers, so that rolling keeps up": f"{p.processes:,}",
        f"Parquet: a day; {u.retention_days:g} days and the grace": f"{short(p.parquet * DAY, 'B')}; {short(p.disk, 'B')}",
        "files a day: written; rolled": f"{short(p.files_s * DAY)}; {short(p.large_files)}",
        "object store: puts and deletes/s; leases": f"{short(p.puts)}; {short(p.leases)}",
        "object store: reads and lists/s": short(p.reads),
        f"training on {u.retention_days:g} days: rows; columns": f"{short(p.rows)}; {short(p.rows * (20 + 8 * u.features), 'B')}",
        "on one machine": span(p.train_s),
        f"on a cluster, {u.parts:g} parts": span(p.cluster_s),
        f"executors for {span(u.deadline)}, were there parts": f"{p.executors:,}",
        "`up`, each tenth: of a machine's time": f"{p.retrain:,.2%}" if p.retrain < 0.1 else f"{p.retrain:,.0%}",
        f"one machine in {span(u.deadline)}: history; sample": f"{span(most / p.rate)}; 1 in {short(max(p.rows / most, 1))}",
        f"API servers, {short(u.predictions_per_second)} requests/s": f"{p.servers:,}",
        f"of {len(WALLS)} walls behind; the next": f"{len(WALLS) - len(ahead)}; {min(ahead)[1] if ahead else 'none'}",
    }

def tables(u, rates, sizes):
    walls = {size: [crossing(lambda rate: over(Plan(u, rate, size, 1))) for _, over, _ in WALLS] for size in sizes}
    for size in sizes:
        plans = [figures(Plan(u, rate, size), walls[size]) for rate in rates]
        yield [[name, *(plan[name] for plan in plans)] for name in plans[0]]
    order = sorted(range(len(WALLS)), key=lambda i: walls[sizes[0]][i])
    yield [["wall, and the records/s at which it stands", *(f"{size:,g} bytes" for size in sizes), "what to do"]] + [
        [WALLS[i][0], *(short(walls[size][i]) for size in sizes), WALLS[i][2]] for i in order]
    costs = [[f"`{name}`", f"{getattr(u, name):,.14g}", *rest] for name, _, *rest in UNITS]
    yield [["unit cost", "value", "of", "is", "from"], *costs]

def rendered(rows, markdown):
    widths = [0 if markdown else max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rows = [rows[0], ["-" * max(width, 3) for width in widths], *rows[1:]]
    return "".join(f"| {' | '.join(map(str.ljust, row, widths))} |\n" for row in rows)

def main():
    numbers = lambda text: [float(number) for number in text.split(",")]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", type=numbers, default=[1e3, 1e6, 1e8], help="records/s, with commas between them")
    parser.add_argument("--record-bytes", type=numbers, default=[SMALL, LARGE], help="the same for bytes of a record")
    parser.add_argument("--costs", type=argparse.FileType(), help="a JSON object: names of UNITS and their values")
    parser.add_argument("--markdown", action="store_true")
    parser.add_argument("--check", action="store_true")
    for name, value, unit, *_ in UNITS:
        parser.add_argument("--" + name.replace("_", "-"), type=float, help=f"{unit} ({value:g})")
    known, said = {name: value for name, value, *_ in UNITS}, parser.parse_args()
    mine = json.load(said.costs) if said.costs else {}
    if mine.keys() - known.keys():
        parser.error(f"no unit cost is called {min(mine.keys() - known.keys())}")
    values = known | mine | {name: value for name, value in vars(said).items() if name in known and value is not None}
    if not all(isinstance(n, int | float) and n > 0 for n in [*values.values(), *said.rates, *said.record_bytes]):
        parser.error("all values must be numbers above 0")
    u, markdown = argparse.Namespace(**values), said.markdown or said.check
    text = "\n".join(rendered(rows, markdown) for rows in tables(u, said.rates, said.record_bytes))
    if not said.check:
        print(text, end="")
    elif PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip() != text.strip():
        sys.exit("docs/scale.md is not what docs/scale.py --markdown prints: put that between its two markers")

if __name__ == "__main__":
    main()
