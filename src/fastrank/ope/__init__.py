"""Off-policy evaluation: estimate from a log what another policy would have earned."""

from fastrank.ope.arms import evaluate_arms
from fastrank.ope.armsresults import ArmResult, ArmsEvaluation, Compared, Crossed
from fastrank.ope.audit import Audit, Check, audit
from fastrank.ope.batch import Batch
from fastrank.ope.diagnostics import Diagnostics, Thresholds, Weights
from fastrank.ope.estimators import ESTIMATORS, Estimator
from fastrank.ope.evaluation import Evaluation, PolicyResult, StratumResult, evaluate
from fastrank.ope.experimentlog import ExperimentLog
from fastrank.ope.owntable import evaluate_table, evaluation_policies
from fastrank.ope.parts import Partial, SharedRowsError, merged, partial
from fastrank.ope.propensities import ByFunction, ByModel, EvaluationPolicy, FromColumn, FromRows
from fastrank.ope.ratio import Ratio, SampleRatio
from fastrank.ope.results import REASONS, Difference, Estimate, Status, difference, estimate

__all__ = [
    "ESTIMATORS",
    "REASONS",
    "ArmResult",
    "ArmsEvaluation",
    "Audit",
    "Batch",
    "ByFunction",
    "ByModel",
    "Check",
    "Compared",
    "Crossed",
    "Diagnostics",
    "Difference",
    "Estimate",
    "Estimator",
    "Evaluation",
    "EvaluationPolicy",
    "ExperimentLog",
    "FromColumn",
    "FromRows",
    "Partial",
    "PolicyResult",
    "Ratio",
    "SampleRatio",
    "SharedRowsError",
    "Status",
    "StratumResult",
    "Thresholds",
    "Weights",
    "audit",
    "difference",
    "estimate",
    "evaluate",
    "evaluate_arms",
    "evaluate_table",
    "evaluation_policies",
    "merged",
    "partial",
]
