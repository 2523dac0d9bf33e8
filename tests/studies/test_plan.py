from dataclasses import replace
from pathlib import Path

from kinescan.studies.paper import table_study
from kinescan.studies.plan import LATER, NEUTRAL, plan_study


def test_a_new_setting_leaves_the_keys_of_earlier_runs(tmp_path: Path) -> None:
    # This key was written by commit c589411. A new setting that does what was done before belongs into LATER.
    plan = plan_study(table_study("table5", "demo"), tmp_path)
    assert plan.preparations[0].key == "3e727795"
    assert not LATER.keys() & set(NEUTRAL)


def test_a_later_setting_at_another_value_is_another_run(tmp_path: Path) -> None:
    study = table_study("table5", "demo")
    other = replace(study, settings={**study.settings, "train.sharding": "full"})
    before, after = (plan_study(each, tmp_path).jobs[0] for each in (study, other))
    assert before.key != after.key
