"""The examples for several machines are what torchrun, Slurm, Kubernetes and accelerate take."""

import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from kinescan.config import load_recipe
from kinescan.data.video import write_video
from kinescan.training.checkpoint import load_state

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "clusters"
BIN = Path(sys.executable).parent
DIRECTIVES = {
    "job-name": r"\w+",
    "nodes": r"\d+",
    "ntasks-per-node": r"\d+",
    "gpus-per-node": r"\d+",
    "cpus-per-task": r"\d+",
    "time": r"\d+:\d\d:\d\d",
    "signal": r"(B:)?[A-Z]+\d?@\d+",
    "requeue": None,
    "open-mode": r"append|truncate",
    "output": r"[\w%-]+\.log",
}
"""Options of sbatch and what each takes, as its manual has them."""
TEXT, NUMBER, FLAG = (str,), (int,), (bool,)
POD = {
    "spec": {
        "restartPolicy": TEXT,
        "terminationGracePeriodSeconds": NUMBER,
        "containers": [
            {
                "name": TEXT,
                "image": TEXT,
                "command": [TEXT],
                "args": [TEXT],
                "resources": {"limits": {"nvidia.com/gpu": NUMBER, "cpu": NUMBER, "memory": TEXT}},
                "volumeMounts": [{"name": TEXT, "mountPath": TEXT, "readOnly": FLAG}],
            }
        ],
        "volumes": [
            {
                "name": TEXT,
                "persistentVolumeClaim": {"claimName": TEXT},
                "emptyDir": {"medium": TEXT, "sizeLimit": TEXT},
            }
        ],
    }
}
JOB = {"spec": {**dict.fromkeys(("completions", "parallelism", "backoffLimit"), NUMBER), "completionMode": TEXT}}
JOB["spec"]["template"] = POD
JOB_SET = {
    "apiVersion": TEXT,
    "kind": TEXT,
    "metadata": {"name": TEXT},
    "spec": {
        "failurePolicy": {"maxRestarts": NUMBER},
        "replicatedJobs": [{"name": TEXT, "replicas": NUMBER, "template": JOB}],
    },
}
"""The part of the published schema (jobset.x-k8s.io/v1alpha2, batch/v1, core/v1) that the example uses."""


def _misfits(value: Any, schema: Any, where: str = "") -> list[str]:
    """Where a document has a key or a type that its schema does not."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [where]
        unknown = [f"{where}.{key}" for key in value if key not in schema]
        return unknown + [
            found
            for key, own in value.items()
            if key in schema
            for found in _misfits(own, schema[key], f"{where}.{key}")
        ]
    if isinstance(schema, list):
        if not isinstance(value, list) or not value:
            return [where]
        return [found for index, own in enumerate(value) for found in _misfits(own, schema[0], f"{where}[{index}]")]
    return [] if type(value) in schema else [where]


def _flags(command: list[str]) -> set[str]:
    return {word for word in command if word.startswith("--")}


@pytest.fixture(scope="module")
def torchrun_flags() -> set[str]:
    said = subprocess.run([str(BIN / "torchrun"), "--help"], capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"--[a-z][a-z-]+", said))


def _torchrun_part(text: str) -> list[str]:
    """The words of a script from torchrun to the module that it starts."""
    words = shlex.split(text.replace("\\\n", " "), comments=True)
    if "torchrun" not in words:
        [inner] = [word for word in words if word.startswith("torchrun ") or " torchrun " in word]
        words = shlex.split(inner)
    start = words.index("torchrun")
    return words[start : words.index("kinescan", start)]


@pytest.mark.parametrize("name", ["torchrun.sh", "slurm.sbatch"])
def test_scripts_are_sound_and_torchrun_knows_their_flags(name: str, torchrun_flags: set[str]) -> None:
    subprocess.run(["bash", "-n", str(FOLDER / name)], check=True)
    part = _torchrun_part((FOLDER / name).read_text(encoding="utf-8"))
    assert _flags(part) == {"--nnodes", "--node-rank", "--nproc-per-node", "--master-addr", "--master-port"}
    assert _flags(part) <= torchrun_flags
    assert part[-1] == "-m"


def test_slurm_directives_are_those_of_its_manual() -> None:
    text = (FOLDER / "slurm.sbatch").read_text(encoding="utf-8")
    # Slurm reads directives up to the first command
    head = text[: text.index("set -euo")]
    found = dict(re.findall(r"^#SBATCH --([a-z-]+)(?:=(\S+))?$", head, re.MULTILINE))
    assert found.keys() == DIRECTIVES.keys()
    assert len(found) == text.count("#SBATCH")
    for name, value in found.items():
        wanted = DIRECTIVES[name]
        assert value == "" if wanted is None else re.fullmatch(wanted, value), name
    # one torchrun on each machine
    assert found["ntasks-per-node"] == "1"


def test_job_set_fits_the_published_schema(torchrun_flags: set[str]) -> None:
    job_set = yaml.safe_load((FOLDER / "jobset.yaml").read_text(encoding="utf-8"))
    assert _misfits(job_set, JOB_SET) == []
    assert (job_set["apiVersion"], job_set["kind"]) == ("jobset.x-k8s.io/v1alpha2", "JobSet")
    [machines] = job_set["spec"]["replicatedJobs"]
    job = machines["template"]["spec"]
    [container] = job["template"]["spec"]["containers"]
    part = _torchrun_part(container["args"][0])
    assert _flags(part) <= torchrun_flags
    assert part[part.index("--nnodes") + 1] == str(job["completions"]) == str(job["parallelism"])
    # JobSet's name of the first pod: set, job, index of the job, index of the pod; and the set's own service
    first = f"{job_set['metadata']['name']}-{machines['name']}-0-0.{job_set['metadata']['name']}"
    assert part[part.index("--master-addr") + 1] == first
    volumes = {volume["name"] for volume in job["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    load_recipe(next(word for word in container["args"][0].split() if word.endswith(".toml")))


@pytest.mark.bad_input
def test_a_key_that_kubernetes_does_not_know_is_found() -> None:
    job_set = yaml.safe_load((FOLDER / "jobset.yaml").read_text(encoding="utf-8"))
    job_set["spec"]["replicatedJobs"][0]["template"]["spec"]["backOffLimit"] = 2
    job_set["spec"]["failurePolicy"]["maxRestarts"] = "10"
    assert _misfits(job_set, JOB_SET) == [
        ".spec.failurePolicy.maxRestarts",
        ".spec.replicatedJobs[0].template.spec.backOffLimit",
    ]


def _port() -> str:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def test_accelerate_starts_processes_that_kinescan_takes(tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(
        "import os\n"
        "from kinescan.runtime.launch import missing_variables, rank, world_size\n"
        "from kinescan.training.accelerator import TrainConfig, refuse_environment\n"
        'refuse_environment(os.environ, TrainConfig(device="cpu"))\n'
        "print(rank(), world_size(), missing_variables(), flush=True)\n"
    )
    here = ["--num_processes", "2", "--main_process_port", _port()]
    said = subprocess.run(
        [str(BIN / "accelerate"), "launch", "--config_file", str(FOLDER / "accelerate.yaml"), *here, str(probe)],
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert said.returncode == 0, said.stderr
    assert sorted(said.stdout.split("\n"))[1:] == ["0 2 []", "1 2 []"]


def _tiny(folder: Path, *, epochs: int = 1, more: str = "") -> Path:
    """A recipe of a tiny model on eight tiny videos."""
    generator = torch.Generator().manual_seed(0)
    for label, low in (("bright", 156), ("dark", 0)):
        for index in range(4):
            pixels = torch.randint(low, low + 100, (4, 3, 32, 32), generator=generator, dtype=torch.uint8)
            write_video(folder / "videos" / label / f"{index}.mp4", pixels, fps=8)
    recipe = folder / "tiny.toml"
    recipe.write_text(
        f'data.train = "{(folder / "videos").as_posix()}"\n'
        '[model]\nname = "vit_ti16"\n[model.options]\npatch_size = 16\nwidth = 16\ndepth = 1\nheads = 2\nmlp_dim = 16\n'
        "embed_dim = 16\n[preprocessing]\nsize = 32\nnum_frames = 4\n[loader]\nbatch_size = 2\nnum_workers = 0\n"
        f'[optim]\nepochs = {epochs}\nwarmup_epochs = 0\n[train]\ndevice = "cpu"\ntrackers = []\n{more}'
        '[evaluation]\nviews = "4x1x1"\n'
    )
    return recipe


def test_two_machines_train_by_the_script(tmp_path: Path) -> None:
    recipe = _tiny(tmp_path, more='sharding = "full"\n')
    here = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _port(), "PROCESSES": "1", "OMP_NUM_THREADS": "1"}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    machines = [
        subprocess.Popen(
            ["bash", str(FOLDER / "torchrun.sh"), str(recipe), str(tmp_path / "run"), "--json"],
            env={**os.environ, **here, "NODE_RANK": str(number), "PATH": path},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    said = [machine.communicate(timeout=280) for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    assert (tmp_path / "run" / "report.json").is_file()


SLURM = {
    # the run's processes, on this machine alone
    "srun": '#!/usr/bin/env bash\necho $$ > "$JOB/step"\nexec "$@"\n',
    "scontrol": '#!/usr/bin/env bash\n[ "$1" = show ] && echo 127.0.0.1 || echo "$@" >> "$JOB/scontrol"\n',
    # as Slurm does: to every process of the step at once
    "scancel": (
        f"#!{sys.executable}\n"
        "import os, psutil, signal, sys\n"
        'step = psutil.Process(int(open(os.environ["JOB"] + "/step").read()))\n'
        'assert sys.argv[1:] == ["--signal=TERM", "7"], sys.argv\n'
        "for process in [step, *step.children(recursive=True)]:\n    process.send_signal(signal.SIGTERM)\n"
    ),
}
"""What the script calls of Slurm, as its manual says that they behave."""


def _job(folder: Path, recipe: Path, *more: str) -> subprocess.Popen[str]:
    commands = folder / "commands"
    commands.mkdir(exist_ok=True)
    for name, text in SLURM.items():
        (commands / name).write_text(text)
        (commands / name).chmod(0o755)
    path = os.pathsep.join([str(commands), str(BIN), os.environ["PATH"]])
    job = {"SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n1", "SLURM_NNODES": "1", "SLURM_NODEID": "0"}
    return subprocess.Popen(
        ["bash", str(FOLDER / "slurm.sbatch"), str(recipe), str(folder / "run"), "--json", *more],
        env={**os.environ, **job, "JOB": str(folder), "PROCESSES": "1", "OMP_NUM_THREADS": "1", "PATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def _end_in_its_middle(job: subprocess.Popen[str], log: Path, num_lines: int) -> None:
    """What Slurm does two minutes before the time is over, when the log has so many lines."""
    end = time.monotonic() + 200
    while job.poll() is None and time.monotonic() < end:
        if log.is_file() and log.read_text().count("\n") >= num_lines:
            break
        time.sleep(0.1)
    assert job.poll() is None, job.communicate()
    job.send_signal(signal.SIGUSR1)
    said = job.communicate(timeout=100)
    assert job.returncode != 0, said


def test_a_job_whose_time_is_over_leaves_a_checkpoint_and_is_queued_again(tmp_path: Path) -> None:
    recipe, run, queued = _tiny(tmp_path, epochs=3000), tmp_path / "run", tmp_path / "scontrol"
    _end_in_its_middle(_job(tmp_path, recipe), run / "log.jsonl", 3)
    assert queued.read_text() == "requeue 7\n"
    state = load_state(run / "checkpoints" / "last")
    assert state.step > 0
    # the next one continues, and so on
    _end_in_its_middle(_job(tmp_path, recipe), run / "log.jsonl", state.log_lines + 3)
    assert queued.read_text() == "requeue 7\n" * 2
    assert load_state(run / "checkpoints" / "last").step > state.step


def test_a_job_that_fails_is_not_queued_again(tmp_path: Path) -> None:
    job = _job(tmp_path, tmp_path / "missing.toml")
    _, errors = job.communicate(timeout=200)
    assert job.returncode != 0
    assert "missing.toml" in errors
    assert not (tmp_path / "scontrol").exists()
