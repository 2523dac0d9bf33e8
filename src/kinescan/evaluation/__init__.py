"""One prediction per video, the numbers they give, what they cost, and the report of it all."""

from kinescan.evaluation.comparison import Comparison, compare
from kinescan.evaluation.metrics import Metrics, compute_metrics, pair_accuracy
from kinescan.evaluation.multiview import Evaluation, evaluate_model
from kinescan.evaluation.predictions import VideoPrediction, read_predictions, save_features
from kinescan.evaluation.report import Report, make_report
from kinescan.profiling.cost import Cost, Macs, count_cost, training_flops

__all__ = [
    "Comparison",
    "Cost",
    "Evaluation",
    "Macs",
    "Metrics",
    "Report",
    "VideoPrediction",
    "compare",
    "compute_metrics",
    "count_cost",
    "evaluate_model",
    "make_report",
    "pair_accuracy",
    "read_predictions",
    "save_features",
    "training_flops",
]
