"""An hour of one stream by `kinescan stream --events`: alarms, delays and memory in each sixth of it.

Run after people.py:  OMP_NUM_THREADS=1 python benchmarks/people_hour.py      (five to fifteen minutes)

The streams of the three people that fold 1 of people.py holds out, one behind the other, again and again for an hour in
one file of 25 frames a second. `kinescan stream` reads it with the fold's model and its own thresholds, and tells of
events into JSON lines. What repeats must be told alike: a stream that slowly falls asleep, or forgets nothing, would
have other counts in its last ten minutes than in its first.
Writes benchmarks/results/people_hour.json.
"""

import csv
import json
import os
import subprocess
import sys
import time
from itertools import cycle
from pathlib import Path
from typing import Any

import av
import psutil

import measure
from kinescan.data.intervals import Interval
from kinescan.evaluation.temporal.alarms import Alarm, score_alarms
from people import RATE, WORK

NAME = "people_hour"
SECONDS, PARTS = 3600.0, 6
SAMPLE_SECONDS = 5.0
RUN = WORK / "runs/cv/fold-1"


def make_hour(file: Path, people: list[str]) -> list[Interval]:
    """The file, and what happens in it from when to when; packets are copied, no pixel is coded again."""
    rows: dict[str, list[tuple[float, float, str]]] = {}
    with (WORK / "labels.csv").open(encoding="utf-8") as listed:
        for row in csv.DictReader(listed):
            rows.setdefault(row["path"], []).append((float(row["start"]), float(row["end"]), row["label"]))
    truth: list[Interval] = []
    with av.open(str(file), "w") as output:
        stream, count = None, 0
        for name in cycle(people):
            if count / RATE >= SECONDS:
                return truth
            path = f"streams/{name}.mp4"
            with av.open(str(WORK / path)) as source:
                own = source.streams.video[0]
                if stream is None:
                    stream = output.add_stream_from_template(own)
                first, num_frames = round(count / RATE / own.time_base), 0
                for packet in source.demux(own):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts, packet.stream = packet.pts + first, packet.dts + first, stream
                    output.mux(packet)
                    num_frames += 1
            truth += [
                Interval(
                    video_id="hour", label=label, start_seconds=count / RATE + start, end_seconds=count / RATE + end
                )
                for start, end, label in rows[path]
            ]
            count += num_frames
    return truth


def stream(file: Path, told: Path) -> dict[str, Any]:
    """Runs the command, and looks at its memory while it runs."""
    told.unlink(missing_ok=True)
    command = [sys.executable, "-m", "kinescan", "--quiet", "stream", str(file), "--model", str(RUN)]
    resident, cpu, started = [], 0.0, time.monotonic()
    with subprocess.Popen(
        [*command, "--events", str(told)], stdout=subprocess.DEVNULL, env=dict(os.environ)
    ) as process:
        looked_at = psutil.Process(process.pid)
        while process.poll() is None:
            times = looked_at.cpu_times()
            resident.append(round(looked_at.memory_info().rss / 2**20, 1))
            cpu = times.user + times.system
            time.sleep(SAMPLE_SECONDS)
    if process.returncode:
        raise SystemExit(f"kinescan stream ended with {process.returncode}")
    # the first look is at a process that is starting
    quarter = len(resident) // 4
    return {
        "processor_seconds": round(cpu, 1),
        "seconds": round(time.monotonic() - started, 1),
        "looks": len(resident),
        "mib_after_a_quarter": resident[quarter],
        "mib_at_the_half": resident[2 * quarter],
        "mib_at_three_quarters": resident[3 * quarter],
        "mib_at_most": max(resident),
    }


def main() -> None:
    held_out = [entry["id"] for entry in json.loads((RUN / "videos.json").read_text())["held_out"]]
    file, told = WORK / "hour.mp4", WORK / "hour.jsonl"
    truth = make_hour(file, [Path(name).stem for name in sorted(held_out)])
    process = stream(file, told)
    events = [json.loads(line) for line in told.read_text(encoding="utf-8").splitlines()]
    alarms = [
        Alarm(video_id="hour", label=one["label"], seconds=one["told_at_seconds"])
        for one in events
        if one["kind"] == "start"
    ]
    length = max(one.end_seconds for one in truth)
    parts: dict[str, Any] = {}
    for part in range(PARTS):
        low, high = part * length / PARTS, (part + 1) * length / PARTS
        scores = score_alarms(
            [one for one in truth if low <= one.start_seconds < high],
            [one for one in alarms if low <= one.seconds < high],
            hours=length / PARTS / 3600,
        )
        parts[f"minutes {low / 60:.0f} to {high / 60:.0f}"] = {
            "events": scores.num_true,
            "missed": scores.num_missed,
            "false": scores.num_false,
            "median_delay_seconds": round(scores.delay_seconds(), 3),
            "delay_seconds_90_percent": round(scores.delay_seconds(0.9), 3),
        }
    settings = {
        "what": "events of an hour of one stream of drawn people that the model has not seen, in sixths; resident "
        "memory and processor time of the command, reading at its own pace",
        "people": held_out,
        "frames_a_second": RATE,
        "command": "kinescan stream HOUR.mp4 --model RUN --events EVENTS.jsonl",
    }
    measure.write_result(
        NAME, seed=0, n=1, settings=settings, results={"sixths of the hour": parts, "the process": process}
    )


if __name__ == "__main__":
    main()
