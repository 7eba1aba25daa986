"""The event log: one row for each ranking served, with everything needed to evaluate it later.

`LogWriter` appends rankings, `LogUploader` uploads them, `LogReader` streams them back as checked
arrays, and `join` adds the rewards. Other logs are converted to the schema: any table by
`from_table`, and known formats by `from_obd`, `from_obp`, `from_dsjson` and `from_data_capture`.
Needs pyarrow (the extra ``ope``).
"""

from fastrank.eventlog.account import JoinSummary
from fastrank.eventlog.batch import LogBatch
from fastrank.eventlog.capture import DataCapture, from_data_capture
from fastrank.eventlog.dsjson import Dsjson, from_dsjson
from fastrank.eventlog.filters import bias_id, filter_id
from fastrank.eventlog.join import join
from fastrank.eventlog.obdlog import from_obd
from fastrank.eventlog.obplog import from_obp
from fastrank.eventlog.owncolumns import ColumnsError
from fastrank.eventlog.ownlog import OwnLog, TableLog, from_table
from fastrank.eventlog.reader import LogReader
from fastrank.eventlog.report import ReadReport
from fastrank.eventlog.schema import SCHEMA_VERSION, schema
from fastrank.eventlog.strata import Stratum
from fastrank.eventlog.upload import LogUploader
from fastrank.eventlog.writer import LogWriter

__all__ = [
    "SCHEMA_VERSION",
    "ColumnsError",
    "DataCapture",
    "Dsjson",
    "JoinSummary",
    "LogBatch",
    "LogReader",
    "LogUploader",
    "LogWriter",
    "OwnLog",
    "ReadReport",
    "Stratum",
    "TableLog",
    "bias_id",
    "filter_id",
    "from_data_capture",
    "from_dsjson",
    "from_obd",
    "from_obp",
    "from_table",
    "join",
    "schema",
]
