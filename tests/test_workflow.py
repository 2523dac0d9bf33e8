"""The workflow for GitHub runs what a developer runs, and keeps the screenshots."""

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def _workflow() -> dict[Any, Any]:
    return yaml.safe_load((ROOT / ".github" / "workflows" / "checks.yaml").read_text())


def test_it_runs_the_checks_and_keeps_the_screenshots_whatever_happens() -> None:
    [job] = _workflow()["jobs"].values()
    steps = job["steps"]
    [checks] = [place for place, step in enumerate(steps) if step.get("run") == ".ci/run"]
    [kept] = [place for place, step in enumerate(steps) if step.get("uses", "").startswith("actions/upload-artifact@")]
    assert checks < kept
    assert (ROOT / steps[checks]["run"]).is_file()
    assert steps[kept]["if"] == "always()"
    assert steps[kept]["with"]["path"] == job["env"]["KINESCAN_SCREENSHOTS"]
    assert steps[kept]["with"]["if-no-files-found"] == "error"


def test_it_runs_at_every_change_and_may_only_read() -> None:
    workflow = _workflow()
    # YAML reads the key `on` as true
    assert set(workflow[True]) == {"push", "pull_request"}
    assert workflow["permissions"] == {"contents": "read"}
    versions = [
        step["uses"].rpartition("@")[2] for job in workflow["jobs"].values() for step in job["steps"] if "uses" in step
    ]
    assert all(version.startswith("v") for version in versions)
