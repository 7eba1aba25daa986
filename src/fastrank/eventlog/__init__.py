"""The event log: one row for each ranking served, with all that evaluating it later needs.

`LogWriter` appends rankings, `LogReader` streams them back as checked arrays, `join` brings in the
rewards, and `from_obd` and `from_data_capture` bring other logs into the schema. Needs pyarrow (the
extra ``ope``).
"""

from fastrank.eventlog.account import JoinSummary
from fastrank.eventlog.batch import LogBatch
from fastrank.eventlog.capture import DataCapture, from_data_capture
from fastrank.eventlog.filters import bias_id, filter_id
from fastrank.eventlog.join import join
from fastrank.eventlog.obdlog import from_obd
from fastrank.eventlog.reader import LogReader
from fastrank.eventlog.report import ReadReport
from fastrank.eventlog.schema import SCHEMA_VERSION, schema
from fastrank.eventlog.strata import Stratum
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
