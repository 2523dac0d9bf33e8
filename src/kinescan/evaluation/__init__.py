"""One prediction per video, the numbers they give, what they cost, and the report of it all.

Its own names are loaded when they are first used: a prediction needs no report.
"""

from typing import TYPE_CHECKING

from kinescan.profiling.cost import Cost, Macs, count_cost, training_flops
from kinescan.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from kinescan.evaluation.comparison import Comparison, compare
    from kinescan.evaluation.metrics import Metrics, compute_metrics, pair_accuracy
    from kinescan.evaluation.multiview import Evaluation, evaluate_model
    from kinescan.evaluation.predictions import VideoPrediction, read_predictions, save_features
    from kinescan.evaluation.report import Report, make_report

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

__getattr__ = lazy_names(
    __name__,
    {
        "kinescan.evaluation.comparison": ["Comparison", "compare"],
        "kinescan.evaluation.metrics": ["Metrics", "compute_metrics", "pair_accuracy"],
        "kinescan.evaluation.multiview": ["Evaluation", "evaluate_model"],
        "kinescan.evaluation.predictions": ["VideoPrediction", "read_predictions", "save_features"],
        "kinescan.evaluation.report": ["Report", "make_report"],
    },
)
