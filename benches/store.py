"""A store as docs/store.md describes it, made without a broker: files named by where they start, footers that say what they cover.

    store.py DIRECTORY MILLIONS [ROWS]     five narrow fields in four partitions, in files of a million rows, or of so many
"""

import json, pathlib, sys
import numpy as np, pyarrow as pa, pyarrow.parquet as pq

root, millions = pathlib.Path(sys.argv[1]), int(sys.argv[2])
rng = np.random.default_rng(1)
text = ["product_id", "product_name", "category", "discounted_price", "actual_price", "discount_percentage", "rating",
        "rating_count", "about_product", "user_id", "user_name", "review_id", "review_title", "review_content", "img_link",
        "product_link"]
prices = pa.array([f"₹{i:,}" for i in range(1, 150_000)])
counts = pa.array([f"{i:,}" for i in range(1, 500_000)])
percents = pa.array([f"{i}%" for i in range(0, 96)])
ratings = pa.array([f"{i / 10}" for i in range(10, 51)])
stamp = pa.timestamp("ms", tz="UTC")
rows, partitions = int(sys.argv[3]) if len(sys.argv) > 3 else 1_000_000, 4
for partition in range(partitions):
    directory = root / "records" / "products" / str(partition)
    directory.mkdir(parents=True)
    (directory / "_start").write_text("0")
    share = millions * 1_000_000 // partitions
    for start in range(0, share, rows):
        n = min(rows, share - start)
        pick = lambda values: values.take(pa.array(np.minimum(rng.exponential(len(values) / 8, n), len(values) - 1).astype("i4")))
        offsets = np.arange(start, start + n, dtype="i8")
        columns = {
            "_partition": pa.array(np.full(n, partition, "i4")),
            "_offset": pa.array(offsets),
            "_timestamp": pa.array(1_700_000_000_000 + offsets // 7 + rng.integers(0, 3, n), pa.int64()).cast(stamp),
            "_key": pa.nulls(n, pa.binary()), "_headers": pa.nulls(n, pa.string()),
            **{name: pa.nulls(n, pa.string()) for name in text},
            "_extra": pa.nulls(n, pa.string()), "_error": pa.nulls(n, pa.string()), "_raw": pa.nulls(n, pa.binary()),
        }
        columns |= {"discounted_price": pick(prices), "actual_price": pick(prices), "discount_percentage": pick(percents),
                    "rating": pick(ratings), "rating_count": pick(counts)}
        table = pa.table(columns)
        fields = [f.with_nullable(f.name not in ("_partition", "_offset")) for f in table.schema]
        meta = {"partition": str(partition), "start": str(start), "next": str(start + n), "rows": str(n)}
        table = table.cast(pa.schema(fields)).replace_schema_metadata(meta)
        pq.write_table(table, directory / f"{start:020}.parquet", compression="zstd", row_group_size=rows)
source = {"topic": "products", "id": "made by benches/store.py", "partitions": partitions, "files": []}
(root / "source.json").write_text(json.dumps(source))
