"""A few small videos in which something lights up now and then, and a list of when."""

from pathlib import Path

import torch

from kinescan.data.video import write_video

EVENTS = {
    "0.mp4": [(1.0, 2.0, "red"), (3.0, 3.5, "blue")],
    "1.mp4": [(0.5, 1.5, "blue")],
    "2.mp4": [],
    "3.mp4": [(0.0, 1.0, "red"), (2.0, 4.0, "blue")],
}
SECONDS = {"0.mp4": 4.0, "1.mp4": 2.5, "2.mp4": 2.0, "3.mp4": 5.0}
FPS = 8


def write_events(folder: Path, *, names: tuple[str, ...] = tuple(EVENTS), list_name: str = "events.csv") -> Path:
    """Writes the videos and the list of path,start,end,label, and gives the list."""
    rows = ["path,start,end,label"]
    for index, name in enumerate(names):
        generator = torch.Generator().manual_seed(index)
        pixels = torch.randint(90, 110, (round(SECONDS[name] * FPS), 3, 24, 32), generator=generator).byte()
        for start, end, label in EVENTS[name]:
            pixels[round(start * FPS) : round(end * FPS), 0 if label == "red" else 2] = 250
            rows.append(f"{name},{start},{end},{label}")
        if not EVENTS[name]:
            rows.append(f"{name},,,")
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / name, pixels, fps=FPS)
    (folder / list_name).write_text("\n".join(rows) + "\n", encoding="utf-8")
    return folder / list_name
