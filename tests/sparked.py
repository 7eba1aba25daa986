"""What tests have Spark do, in a process of its own.

python tests/sparked.py USERS MODEL LOG SCRATCH
"""

from __future__ import annotations

import sys

from pyspark.sql import SparkSession

from fastrank import batch


def main(users: str, model: str, log: str, scratch: str) -> None:
    """The lines of docs/how-to/rank-all-users.md; in a session whose time zone is not UTC."""
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.memory", "512m")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .config("spark.sql.session.timeZone", "Asia/Tokyo")
        .config("spark.sql.execution.arrow.maxRecordsPerBatch", "64")
        .config("spark.sql.shuffle.partitions", "3")
        .config("spark.local.dir", scratch)
        .config("spark.sql.warehouse.dir", scratch)
        .getOrCreate()
    )
    try:
        rank = batch.RankUsers(**batch.begin(log, run="night", model=model, k=5))
        everybody = spark.read.parquet(users).repartition(3)
        rows = everybody.mapInArrow(rank.batches, rank.spark_schema())
        rows.write.mode("append").parquet(log)
    finally:
        spark.stop()


if __name__ == "__main__":
    main(*sys.argv[1:])
