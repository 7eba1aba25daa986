"""Types of the native module; ext/_native.pyx documents it."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, overload

import numpy as np
import numpy.typing as npt

LANES: int
DETERMINISTIC: int
GUMBEL: int
SEQUENTIAL: int
EPSILON_GREEDY: int
UNIFORM: int
TABLE: int

_Positions: TypeAlias = npt.NDArray[np.int64]
_Scores: TypeAlias = npt.NDArray[np.float32]
_Floats: TypeAlias = npt.NDArray[np.float64]
_Bits: TypeAlias = npt.NDArray[np.uint16]
_Depths: TypeAlias = npt.NDArray[np.uint32]

OPS: tuple[str, ...]
OPERANDS: tuple[str, ...]
REGISTERS: int

class Function:
    def __init__(
        self,
        n_items: int,
        refuse: Callable[[int, str], str],
        constants: _Scores,
        columns: list[_Scores],
        flags: list[_Bits],
        steps: npt.NDArray[np.int32] | None = None,
        code: int = 0,
    ) -> None: ...
    def values(self) -> _Scores: ...

class PackedCatalog:
    query_length: int
    def __init__(
        self,
        arrays: Mapping[str, npt.NDArray[Any]],
        bias: _Scores | None,
        n_items: int,
        dim: int,
        meta: Mapping[str, Any],
        max_bias: float,
        tolerance: float,
        rows: _Positions | None = None,
        panel_rows: _Positions | None = None,
    ) -> None: ...
    @overload
    def rank(
        self,
        query: _Scores,
        k: int,
        kind: int,
        temperature: float,
        epsilon: float,
        seed: int,
        bias: _Scores | None,
        eligible: _Bits | None,
        n_eligible: int,
        threads: int = 1,
        table: tuple[_Depths, float, float] | None = None,
        function: Function | None = None,
        labels: None = None,
        n_labels: int = 0,
    ) -> tuple[_Positions, _Scores, _Floats, float, float, int, bool]: ...
    @overload
    def rank(
        self,
        query: _Scores,
        k: int,
        kind: int,
        temperature: float,
        epsilon: float,
        seed: int,
        bias: _Scores | None,
        eligible: _Bits | None,
        n_eligible: int,
        threads: int = 1,
        table: tuple[_Depths, float, float] | None = None,
        function: Function | None = None,
        *,
        labels: _Bits,
        n_labels: int,
    ) -> tuple[_Positions, _Scores, _Floats, float, float, int, bool, _Floats, float]: ...
    @overload
    def rank_batch(
        self,
        queries: _Scores,
        k: int,
        kinds: npt.NDArray[np.int32],
        temperatures: _Floats,
        epsilons: _Floats,
        seeds: npt.NDArray[np.uint64],
        bias: _Scores | None,
        excluded: list[_Positions | None],
        allowed: list[_Positions | None],
        threads: int,
        tables: list[tuple[_Depths, float, float] | None] | None = None,
        functions: list[Function | None] | None = None,
        labels: None = None,
        n_labels: int = 0,
    ) -> tuple[
        _Positions,
        _Scores,
        _Floats,
        _Floats,
        _Floats,
        _Positions,
        _Positions,
        _Positions,
        npt.NDArray[np.bool_],
    ]: ...
    @overload
    def rank_batch(
        self,
        queries: _Scores,
        k: int,
        kinds: npt.NDArray[np.int32],
        temperatures: _Floats,
        epsilons: _Floats,
        seeds: npt.NDArray[np.uint64],
        bias: _Scores | None,
        excluded: list[_Positions | None],
        allowed: list[_Positions | None],
        threads: int,
        tables: list[tuple[_Depths, float, float] | None] | None = None,
        functions: list[Function | None] | None = None,
        *,
        labels: _Bits,
        n_labels: int,
    ) -> tuple[
        _Positions,
        _Scores,
        _Floats,
        _Floats,
        _Floats,
        _Positions,
        _Positions,
        _Positions,
        npt.NDArray[np.bool_],
        _Floats,
        _Floats,
    ]: ...
    def check(self, queries: _Scores) -> None: ...
    def make_tables(
        self,
        queries: _Scores,
        temperatures: _Floats,
        threads: int = 1,
        functions: list[Function | None] | None = None,
    ) -> tuple[_Depths, _Floats]: ...
    def log_propensities(
        self,
        query: _Scores,
        positions: _Positions,
        kind: int,
        temperature: float,
        epsilon: float,
        bias: _Scores | None,
        eligible: _Bits | None,
        n_eligible: int,
        function: Function | None = None,
    ) -> _Floats: ...
    def rank_flat_tail(
        self,
        query: _Scores,
        k: int,
        temperature: float,
        factor: float,
        seed: int,
        candidates: _Positions,
        known: _Scores | None,
        bias: _Scores | None,
        eligible: _Bits | None,
        n_eligible: int,
    ) -> tuple[
        _Positions, _Scores, _Floats, float, float, int, bool, npt.NDArray[np.bool_], float
    ]: ...
    def flat_tail_log_propensities(
        self,
        query: _Scores,
        positions: _Positions,
        temperature: float,
        factor: float,
        candidates: _Positions,
        known: _Scores | None,
        bias: _Scores | None,
        eligible: _Bits | None,
        n_eligible: int,
    ) -> _Floats: ...
    def scores(
        self, query: _Scores, bias: _Scores | None, function: Function | None = None
    ) -> _Scores: ...
    def over_scores(self) -> GivenScores: ...
    def scores_at(
        self,
        query: _Scores,
        positions: _Positions,
        bias: _Scores | None,
        function: Function | None = None,
    ) -> _Scores: ...
    def label_masses(
        self,
        query: _Scores,
        temperature: float,
        bias: _Scores | None,
        eligible: _Bits | None,
        labels: npt.NDArray[np.int32],
        n_labels: int,
        function: Function | None = None,
    ) -> tuple[_Floats, _Floats, _Positions]: ...

class GivenScores(PackedCatalog):
    def __init__(
        self,
        n_items: int,
        rows: _Positions | None = None,
        panel_rows: _Positions | None = None,
        known: bool = False,
    ) -> None: ...

def table_size(n_items: int) -> int: ...
def make_filter(
    n_items: int, allowed: _Positions | None, excluded: _Positions | None
) -> tuple[_Bits, int]: ...
def quantise(
    vectors: _Scores,
    first: int,
    columns: _Scores,
    codes: npt.NDArray[np.uint8],
    scales: _Scores,
    kept: _Scores,
) -> tuple[int, float, float, float, float]: ...
def find_rows(
    rows: npt.NDArray[np.uint8], wanted: npt.NDArray[np.uint8], key: int
) -> _Positions: ...
def ascends(ids: _Positions) -> bool: ...
def rows_at(name: str, order: _Positions, places: npt.NDArray[np.uint64]) -> _Positions: ...
def find_consecutive(
    name: str, ids: _Positions, order: _Positions, first: int, wanted: _Positions
) -> _Positions: ...
def pack(vectors: _Scores, first: int, panels: _Scores) -> tuple[int, float]: ...
def isa() -> str | None: ...
def set_isa(name: str) -> str: ...
