"""Rank every user, in parts: by a process pool, Ray, Spark or any other map.

`RankUsers` is what an engine maps: a table of users in, rows of the log out. Of a catalog in parts
it asks a `Shard` each. `run` is the embedded engine, which goes on after a kill. `begin` draws a
run's key and keeps it beside the log, for an engine of one's own; `project` makes of the log what a
serving store keeps. Needs pyarrow (the extra ``data``).
"""

from fastrank.batch.manifest import begin
from fastrank.batch.projection import project
from fastrank.batch.runs import Summary, run
from fastrank.batch.sharded import Shard
from fastrank.batch.users import RankUsers

__all__ = ["RankUsers", "Shard", "Summary", "begin", "project", "run"]
