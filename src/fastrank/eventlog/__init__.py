"""The event log: one row for each ranking served, with all that evaluating it later needs.

`LogWriter` appends rankings, `LogReader` streams them back as checked arrays, `join` brings in the
rewards, and adapters bring other logs into the schema. Needs pyarrow (the extra ``ope``).
"""

from fastrank.eventlog.adapters import DataCapture, from_data_capture, from_obd
from fastrank.eventlog.filters import bias_id, filter_id
from fastrank.eventlog.join import JoinSummary, join
from fastrank.eventlog.reader import LogBatch, LogReader, ReadReport
from fastrank.eventlog.schema import SCHEMA_VERSION, Stratum, schema
from fastrank.eventlog.writer import LogWriter

__all__ = [
    "SCHEMA_VERSION",
    "DataCapture",
    "JoinSummary",
    "LogBatch",
    "LogReader",
    "LogWriter",
    "ReadReport",
    "Stratum",
    "bias_id",
    "filter_id",
    "from_data_capture",
    "from_obd",
    "join",
    "schema",
]
