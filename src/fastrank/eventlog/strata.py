"""Strata: rows of a log by the law that they follow."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from fastrank.arraytypes import AnyArray, Mask
from fastrank.eventlog.columns import Parameters, codes_of, floats, rounded
from fastrank.eventlog.hashing import text_hash
from fastrank.policies import law_name

__all__ = ["Strata", "Stratum"]


@dataclass(frozen=True, slots=True)
class Stratum:
    """Rows that follow one law: their common properties besides user, filters and seed.

    Rows that different samplers drew from one law belong to one stratum.

    Attributes
    ----------
    policy_name : str
        The inference type of its first row; it does not distinguish strata.
    params : tuple of (str, float)
        The law's parameters, sorted by name, to 12 significant digits. `temperature` excludes the
        user's factor: it is a row's temperature divided by its `user_temperature`.
    model_version, catalog_version : str or None
    is_fallback : bool
    score : str or None
        The score, if it is not the dot product: its name and the start of its hash. Its parameters
        vary between requests.
    features_version : str or None
    law : str
        Name of the law, by default that of `policy_name`.

    Examples
    --------
    >>> gumbel, cached = (
    ...     Stratum(name, (("temperature", 0.5),), "m", "c", False)
    ...     for name in ("stochastic_gumbel_softmax_trick", "stochastic_plackett_luce_cached")
    ... )
    >>> gumbel.law, gumbel == cached
    ('plackett_luce', True)
    """

    policy_name: str = field(compare=False)
    params: tuple[tuple[str, float], ...]
    model_version: str | None
    catalog_version: str | None
    is_fallback: bool
    law: str = ""
    score: str | None = None
    features_version: str | None = None

    def __post_init__(self) -> None:
        if not self.law:
            object.__setattr__(self, "law", law_name(self.policy_name))


class Strata:
    """The strata of a log, numbered in order of appearance.

    Attributes
    ----------
    found : list of Stratum
    hashes : list of int
        A hash of each stratum: equal in every process, however a log is divided into batches.
    """

    def __init__(self) -> None:
        self.found: list[Stratum] = []
        self.hashes: list[int] = []
        self._index: dict[Stratum, int] = {}

    def of(self, batch: pa.RecordBatch, is_fallback: Mask) -> npt.NDArray[np.int32]:
        """For each row (n,), its index into `found`; new strata are added."""
        n = batch.num_rows
        if n == 0:
            return np.empty(0, np.int32)
        parts: list[AnyArray] = []
        texts = {}
        for name in ("law", "model_version", "catalog_version"):
            codes, names = codes_of(batch.column(name))
            parts.append(codes)
            texts[name] = names
        scores = _scores_of(batch)
        for name, column in scores.items():
            codes, texts[name] = codes_of(column)
            parts.append(codes)
        policies, names_of = codes_of(batch.column("policy_name"))
        params, factor = (
            Parameters(batch.column("law_params")),
            floats(batch.column("user_temperature")),
        )
        values = params.values
        if "temperature" in params.names:
            # Without the user's factor.
            own = params.codes == params.names.index("temperature")
            factor = np.where(np.isnan(factor), 1.0, factor)[params.rows]
            values = np.where(own, values / factor, values)
        values = rounded(values)
        for place in range(int(params.places.max(initial=-1)) + 1):
            at = np.flatnonzero(params.places == place)
            part = np.full((2, n), -1, np.int64)
            part[:, params.rows[at]] = params.codes[at], values.view(np.int64)[at]
            parts.extend(part)
        first_of = np.searchsorted(params.rows, np.arange(n + 1))
        parts.append(is_fallback.astype(np.int64))
        key = np.zeros(n, np.int64)
        for part in parts:
            if (part == part[0]).all():
                continue
            _, inverse = np.unique(part, return_inverse=True)
            _, key = np.unique(key * (int(inverse.max()) + 1) + inverse, return_inverse=True)
        _, firsts, inverse = np.unique(key, return_index=True, return_inverse=True)
        indices = np.empty(len(firsts), np.int32)
        for group in np.argsort(firsts).tolist():  # numbered in order of appearance
            row = int(firsts[group])

            def text(name: str, part: AnyArray, row: int = row) -> str | None:
                return texts[name][part[row]] if part[row] >= 0 else None

            stratum = Stratum(
                policy_name=names_of[policies[row]],
                params=tuple(
                    (params.names[params.codes[at]], float(f"{values[at]:.12g}"))
                    for at in range(first_of[row], first_of[row + 1])
                ),
                model_version=text("model_version", parts[1]),
                catalog_version=text("catalog_version", parts[2]),
                is_fallback=bool(is_fallback[row]),
                law=text("law", parts[0]) or "",
                **{name: text(name, parts[3 + j]) for j, name in enumerate(scores)},
            )
            if stratum not in self._index:
                self._index[stratum] = len(self.found)
                self.found.append(stratum)
                law = {
                    name: text for name, text in asdict(stratum).items() if name != "policy_name"
                }
                self.hashes.append(text_hash(repr(law))[0])
            indices[group] = self._index[stratum]
        return indices[inverse]


def _scores_of(batch: pa.RecordBatch) -> dict[str, pa.Array]:
    """The columns `score`, as one text, and `features_version`, which most logs lack."""
    found: dict[str, pa.Array] = {}
    # A log of version 1 may have its own column of this name.
    if "score" in batch.schema.names and pa.types.is_struct(batch.schema.field("score").type):
        score = batch.column("score")
        begun = pc.utf8_slice_codeunits(pc.struct_field(score, "hash"), 0, 12)
        found["score"] = pc.binary_join_element_wise(pc.struct_field(score, "name"), begun, " #")
    if "features_version" in batch.schema.names:
        found["features_version"] = batch.column("features_version")
    return found
