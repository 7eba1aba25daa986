"""Rank every user, in parts: by a process pool, Ray, Spark or any other map.

`RankUsers` is what an engine maps: a table of users in, rows of the log out. `run` is the built-in
engine, which continues after a kill. `begin` draws a run's key and stores it beside the log, for
other engines; `project` writes what a serving store needs from the log. Needs pyarrow (the extra
``data``).
"""

from fastrank.batch.manifest import begin
from fastrank.batch.projection import project
from fastrank.batch.runs import Summary, run
from fastrank.batch.users import RankUsers

__all__ = ["RankUsers", "Summary", "begin", "project", "run"]
