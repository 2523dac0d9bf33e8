"""The container example says what the documentation promises of it; no engine is needed."""

import os
import re
import subprocess
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "examples" / "container"


def _stages() -> dict[str, list[str]]:
    """Name of a stage -> its instructions, each in one line."""
    text = re.sub(r"\\\n\s*", " ", (FOLDER / "Dockerfile").read_text())
    stages: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("FROM "):
            current = stages.setdefault(line.split(" AS ")[1], [])
        if line and not line.startswith("#") and stages:
            current.append(line)
    return stages


def test_both_images_are_built_from_the_wheel_and_run_without_privileges() -> None:
    stages = _stages()
    assert list(stages) == ["wheel", "cuda", "cpu"]
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    for name in ("cpu", "cuda"):
        lines = stages[name]
        kinds = [line.split()[0] for line in lines]
        assert "COPY --from=wheel /wheels /wheels" in lines
        assert lines[kinds.index("USER")] == "USER 10001"
        assert not {"RUN", "COPY", "ADD"} & set(kinds[kinds.index("USER") :])
        assert "/health" in lines[kinds.index("HEALTHCHECK") + 0]
        assert lines[-2] == 'ENTRYPOINT ["kinescan"]'
        [wanted] = re.findall(r"\$\{WHEEL\}\[([\w,]+)\]", " ".join(lines))
        assert set(wanted.split(",")) <= extras.keys()
        base = lines[0].split()[1]
        assert re.search(r":[\d.]+", base), "a base has a version"
    # what is copied is sent to the engine
    sent = {line[1:] for line in (FOLDER / "Dockerfile.dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = {word for line in stages["wheel"] if line.startswith("COPY") for word in line.split()[1:-1]}
    assert {word.removeprefix("./") for word in copied} | {"constraints.txt"} == sent
    assert all((ROOT / name).exists() for name in sent)


def test_the_service_of_the_compose_file_is_closed_up() -> None:
    services = yaml.safe_load((FOLDER / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert service["build"]["target"] == name
        assert service["build"]["target"] in _stages()
        assert (FOLDER / service["build"]["context"]).resolve() == ROOT
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert all(volume.endswith(":ro") for volume in service["volumes"])
        assert ":?" in service["environment"]["KINESCAN_API_KEY"]


def test_the_script_of_the_steps_is_a_program() -> None:
    script = FOLDER / "run_steps.sh"
    assert os.access(script, os.X_OK)
    assert subprocess.run(["bash", "-n", script], capture_output=True).returncode == 0
