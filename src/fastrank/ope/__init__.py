"""Off-policy evaluation: what another policy would have earned, from logs of this one."""

from fastrank.ope.audit import Audit, Check, audit
from fastrank.ope.batch import Batch
from fastrank.ope.diagnostics import Diagnostics, Thresholds, Weights
from fastrank.ope.estimators import ESTIMATORS, Estimator
from fastrank.ope.evaluation import Evaluation, PolicyResult, StratumResult, evaluate
from fastrank.ope.owntable import evaluate_table, evaluation_policies
from fastrank.ope.propensities import ByFunction, ByModel, EvaluationPolicy, FromColumn
from fastrank.ope.results import REASONS, Difference, Estimate, Status, difference, estimate

__all__ = [
    "ESTIMATORS",
    "REASONS",
    "Audit",
    "Batch",
    "ByFunction",
    "ByModel",
    "Check",
    "Diagnostics",
    "Difference",
    "Estimate",
    "Estimator",
    "Evaluation",
    "EvaluationPolicy",
    "FromColumn",
    "PolicyResult",
    "Status",
    "StratumResult",
    "Thresholds",
    "Weights",
    "audit",
    "difference",
    "estimate",
    "evaluate",
    "evaluate_table",
    "evaluation_policies",
]
