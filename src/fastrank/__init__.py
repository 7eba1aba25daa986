"""Sample the top k of a catalog in one pass, with the exact probability of what was shown."""

import os as _os

from fastrank import namesake as _namesake
from fastrank import starting as _starting

_starting.begin()  # before NumPy is imported
_namesake.refuse()

from fastrank import _native  # noqa: E402

_requested = _os.environ.get("FASTRANK_ISA")
if _native.isa() is None:
    raise ImportError("fastrank: this CPU is older than x86-64-v2 (SSE4.2)")
if _requested:
    try:
        _native.set_isa(_requested)
    except ValueError as _error:
        raise ImportError(f"FASTRANK_ISA: {_error}") from None

# All below stands after the ISA is known to run.
from fastrank.catalog import RNG_VERSION, Catalog  # noqa: E402
from fastrank.given import (  # noqa: E402
    log_propensities_of_scores,
    rank_scores,
    rank_scores_batch,
)
from fastrank.ids import ItemIds  # noqa: E402
from fastrank.model import Model  # noqa: E402
from fastrank.policies import (  # noqa: E402
    INFERENCE_TYPES,
    BestFirst,
    Deterministic,
    EpsilonGreedy,
    FlatTail,
    Law,
    PlackettLuce,
    Policy,
    Uniform,
    policy,
)
from fastrank.ranking import Ranking, RankingBatch, Score  # noqa: E402
from fastrank.rules import AppliedRules, Rules  # noqa: E402
from fastrank.run import Run  # noqa: E402
from fastrank.scorer import Scorer  # noqa: E402
from fastrank.scoring import ScoreFunction, score_function  # noqa: E402
from fastrank.shards import merge, merge_batch, shard_seed  # noqa: E402

__all__ = [
    "INFERENCE_TYPES",
    "RNG_VERSION",
    "AppliedRules",
    "BestFirst",
    "Catalog",
    "Deterministic",
    "EpsilonGreedy",
    "FlatTail",
    "ItemIds",
    "Law",
    "Model",
    "PlackettLuce",
    "Policy",
    "Ranking",
    "RankingBatch",
    "Rules",
    "Run",
    "Score",
    "ScoreFunction",
    "Scorer",
    "Uniform",
    "log_propensities_of_scores",
    "merge",
    "merge_batch",
    "policy",
    "rank_scores",
    "rank_scores_batch",
    "score_function",
    "shard_seed",
]
__version__ = "0.2.0"
