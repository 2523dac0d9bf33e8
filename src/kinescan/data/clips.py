import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from kinescan.data.readers.files import VIDEO_SUFFIXES, find_videos
from kinescan.data.readers.remote_folders import remote_videos
from kinescan.data.sampling import Views, view_indices
from kinescan.data.transforms import EvalTransform
from kinescan.data.video import Limits
from kinescan.data.video.given import VideoInput, as_inputs, check_input, input_name, open_video
from kinescan.errors import ConfigError
from kinescan.preprocessing import Preprocessing
from kinescan.runtime.addresses import as_path, is_remote, is_remote_folder
from kinescan.runtime.urls import refuse_url


def read_clips(
    video: VideoInput,
    preprocessing: Preprocessing,
    views: Views,
    transform: EvalTransform,
    limits: Limits | None = None,
    *,
    allow_short: bool = False,
    dense_rate: float = 0.0,
    name: str | None = None,
    fps: float = 25.0,
) -> tuple[Tensor, list[float]]:
    """The views of a video, and the times of the first clip's frames.

    Args:
        video: a file, or what else a video may be given as.
        preprocessing: how frames are sampled.
        views: frames, clips and crops.
        transform: how frames become pixels of a clip, with as many crops.
        limits: what the file may take.
        allow_short: read what can be decoded of a cut or damaged file (see VideoReader).
        dense_rate: see `view_indices`.
        name: of the video, for messages.
        fps: frames a second of a video that is given as an array.

    Returns:
        [clips, crops, T, 3, size, size], and T seconds, counted from the file's first frame.

    Raises:
        VideoError: the video cannot be read.
    """
    with open_video(
        video,
        name=input_name(video) if name is None else name,
        fps=fps,
        limits=limits,
        allow_short=allow_short,
        square_pixels=preprocessing.square_pixels,
    ) as reader:
        indices = view_indices(
            reader.num_frames,
            num_frames=views.frames,
            num_clips=views.clips,
            sampling=preprocessing.sampling,
            frame_stride=preprocessing.frame_stride,
            num_windows=preprocessing.num_windows,
            frame_rate=preprocessing.frame_rate,
            dense_rate=dense_rate,
            pts_seconds=reader.pts_seconds,
        )
        frames = reader.read(indices.flatten())
        seconds = frames.pts_seconds[: indices.shape[1]] - reader.pts_seconds[0]
    crops = transform(frames.pixels)  # [crops, clips * T, 3, size, size]
    clips = crops.unflatten(1, tuple(indices.shape)).transpose(0, 1)
    return clips, seconds.tolist()


def video_files(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The files that paths stand for: a folder for the videos in it and below, in order of their names.

    Raises:
        ConfigError: there is no path, a folder holds no video, or a path is a URL.
    """
    given = [as_path(paths)] if isinstance(paths, str | Path) else [as_path(path) for path in paths]
    if not given:
        raise ConfigError("no path to predict was given. Give video files, or folders that hold some.")
    files: list[Path] = []
    for path in given:
        if is_remote(path):
            files += remote_videos(path) if is_remote_folder(path) else [path]
            continue
        refuse_url(path, "Classify a live source with kinescan stream, or fetch the file first.")
        found = find_videos(path) if os.path.isdir(path) else [path]
        if not found:
            known = ", ".join(sorted(VIDEO_SUFFIXES))
            raise ConfigError(f"{path} holds no video file (those end in {known}). Name other files one by one.")
        files += found
    return files


def video_inputs(videos: VideoInput | Iterable[VideoInput]) -> list[tuple[str, VideoInput]]:
    """The videos that something stands for, each with its name: a folder for the videos in it and below.

    Raises:
        ConfigError: there is none, a folder holds none, or something else was given.
        ShapeError: an array has not the shape of a video.
    """
    found: list[tuple[str, VideoInput]] = []
    for given in as_inputs(videos):
        video = check_input(given)
        is_folder = isinstance(video, str | Path) and (os.path.isdir(video) or is_remote_folder(video))
        parts = list(video_files(video)) if is_folder else [video]  # type: ignore[arg-type]
        found += [(input_name(part, len(found) + number), part) for number, part in enumerate(parts)]
    if not found:
        raise ConfigError("no video to predict was given. Give video files, or folders that hold some.")
    return found
