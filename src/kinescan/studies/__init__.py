"""Studies: rows of settings, times seeds, times data, resumable, with tables; a module is loaded when first used."""

from typing import TYPE_CHECKING

from kinescan.runtime.lazy import lazy_names

if TYPE_CHECKING:
    from kinescan.studies.compare import compare_runs as compare_runs
    from kinescan.studies.costs import RowCost as RowCost
    from kinescan.studies.costs import row_costs as row_costs
    from kinescan.studies.job import RunRecord as RunRecord
    from kinescan.studies.plan import Job as Job
    from kinescan.studies.plan import StudyPlan as StudyPlan
    from kinescan.studies.plan import plan_study as plan_study
    from kinescan.studies.report_page import write_report as write_report
    from kinescan.studies.reproduce import Reproduction as Reproduction
    from kinescan.studies.reproduce import plan_reproduction as plan_reproduction
    from kinescan.studies.result import StudyResult as StudyResult
    from kinescan.studies.run import read_study as read_study
    from kinescan.studies.run import run_study as run_study
    from kinescan.studies.study import DataEntry as DataEntry
    from kinescan.studies.study import Preparation as Preparation
    from kinescan.studies.study import Row as Row
    from kinescan.studies.study import Study as Study
    from kinescan.studies.study import build_study as build_study
    from kinescan.studies.study import load_study as load_study

__getattr__ = lazy_names(
    __name__,
    {
        "kinescan.studies.study": ("DataEntry", "Preparation", "Row", "Study", "build_study", "load_study"),
        "kinescan.studies.plan": ("Job", "StudyPlan", "plan_study"),
        "kinescan.studies.compare": ("compare_runs",),
        "kinescan.studies.job": ("RunRecord",),
        "kinescan.studies.result": ("StudyResult",),
        "kinescan.studies.run": ("read_study", "run_study"),
        "kinescan.studies.costs": ("RowCost", "row_costs"),
        "kinescan.studies.report_page": ("write_report",),
        "kinescan.studies.reproduce": ("Reproduction", "plan_reproduction"),
    },
    ("statistics", "curves", "study", "plan", "job", "result", "result_files", "run", "paper"),
)
