import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from kinescan.data.synthetic import MOTION_PAIRS, WindowConfig, make_windows
from kinescan.data.synthetic.sources import Sources, find_sources
from kinescan.data.synthetic.window_paths import WINDOW_PATHS, place_window
from kinescan.data.synthetic.windows import choose_source, render_window
from kinescan.data.video import VideoReader, write_video
from kinescan.errors import ConfigError, VideoError
from kinescan.models.zoo import create_model

SMALL = {"frame_size": 32, "num_frames": 6, "noise_levels": 0.0, "shake_pixels": 0.0}
COUNTS = {"train_per_class": 2, "test_per_class": 1}


def texture(seed: int, height: int = 60, width: int = 80) -> torch.Tensor:
    """A smooth random picture [3, H, W], uint8."""
    coarse = torch.rand(1, 3, 7, 9, generator=torch.Generator().manual_seed(seed))
    return (torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic")[0].clamp(0, 1) * 255).byte()


def write_picture(path: Path, pixels: torch.Tensor) -> None:
    write_video(path, pixels.unsqueeze(0), fps=1, codec="png" if path.suffix == ".png" else "mjpeg")


def write_clip(path: Path, seed: int, num_frames: int = 30) -> None:
    """A dark square that goes to the right over a texture."""
    frames = texture(seed).expand(num_frames, -1, -1, -1).clone()
    for t in range(num_frames):
        frames[t, :, 20:40, t : t + 20] = 0
    write_video(path, frames, fps=10)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pictures, three clips."""
    place = tmp_path_factory.mktemp("sources")
    for seed in range(3):
        write_picture(place / f"p{seed}.png", texture(seed))
        write_clip(place / "deep" / f"v{seed}.mp4", 10 + seed)
    return place


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("made") / "real"
    make_windows(out, WindowConfig(source=str(folder), pairs=tuple(WINDOW_PATHS), **SMALL, **COUNTS))
    return out


def decoded(path: Path) -> torch.Tensor:
    with VideoReader(path) as video:
        return video.read(torch.arange(video.num_frames)).pixels


def pictures(folder: Path) -> Sources:
    names = sorted(path.name for path in folder.glob("*.png"))
    return Sources(folder, {"train": names, "test": names})


def test_make_windows_lays_out_classes_and_says_which_files_were_shown(made):
    meta = json.loads((made / "meta.json").read_text())
    assert (meta["kind"], meta["complete"], len(meta["classes"])) == ("motion", True, 2 * len(WINDOW_PATHS))
    assert {part: len(names) for part, names in meta["sources"].items()} == {"train": 4, "test": 2}
    assert not set(meta["sources"]["train"]) & set(meta["sources"]["test"])
    assert all(len(list((made / "train" / name).glob("*.mp4"))) == 2 for name in meta["classes"])


@pytest.mark.parametrize("pair", list(WINDOW_PATHS))
def test_files_of_a_pair_hold_the_same_frames_so_that_means_tell_nothing(made, pair):
    first, second = MOTION_PAIRS[pair]
    for split, index in (("train", 0), ("train", 1), ("test", 0)):
        forwards, backwards = (decoded(made / split / name / f"{index:04d}.mp4") for name in (first, second))
        assert torch.equal(forwards, backwards.flip(0))
        assert not torch.equal(forwards, backwards)
        assert torch.equal(forwards.double().mean(0), backwards.double().mean(0))
        in_any_order = [sorted(frame.numpy().tobytes() for frame in clip) for clip in (forwards, backwards)]
        assert in_any_order[0] == in_any_order[1]


def test_an_averaging_vit_gives_both_classes_the_same_scores(made):
    torch.manual_seed(0)
    sizes = {"image_size": 32, "patch_size": 16, "width": 32, "depth": 2, "heads": 2, "mlp_dim": 32, "embed_dim": 16}
    model = create_model("vit_ti16", num_classes=8, **sizes).eval()
    torch.nn.init.normal_(model.head.weight)
    for pair in WINDOW_PATHS:
        clips = [decoded(made / "train" / name / "0000.mp4").float() / 255 for name in MOTION_PAIRS[pair]]
        with torch.inference_mode():
            forwards, backwards = model(torch.stack(clips))
        assert forwards.std() > 1e-2
        torch.testing.assert_close(forwards, backwards, atol=1e-5, rtol=1e-5)


def shift_between(first: torch.Tensor, second: torch.Tensor) -> tuple[int, int]:
    """How far (x, y) the second picture's content moved, by phase correlation of grey pictures."""
    one, two = (torch.fft.fft2(frame.float().mean(0) - frame.float().mean()) for frame in (first, second))
    product = two * one.conj()
    peak = int(torch.fft.ifft2(product / product.abs().clamp(min=1e-6)).real.argmax())
    size = first.shape[-1]
    y, x = divmod(peak, size)
    return (x + size // 2) % size - size // 2, (y + size // 2) % size - size // 2


def noise_sources(tmp_path: Path) -> Sources:
    for seed in range(2):
        coarse = torch.rand(3, 200, 260, generator=torch.Generator().manual_seed(seed))
        write_picture(tmp_path / f"{seed}.png", (coarse * 255).byte())
    return pictures(tmp_path)


@pytest.mark.parametrize(
    ("pair", "way"),
    [("horizontal", (1, 0)), ("vertical", (0, 1)), ("falling", (0.7071, 0.7071)), ("rising", (0.7071, -0.7071))],
)
def test_what_is_seen_moves_as_the_class_says(tmp_path, pair, way):
    sources = noise_sources(tmp_path)
    config = WindowConfig(source=str(tmp_path), frame_size=64, num_frames=10, noise_levels=0, shake_pixels=0)
    for index in range(4):
        clip = render_window(config, sources, "train", pair, index)
        shifts = np.array([shift_between(clip[t], clip[t + 3]) for t in (0, 3, 6)])
        x, y = shifts.sum(0)
        # by 35 to 55 % of 64 pixels in nine steps; hardly across
        assert 0.3 * 64 < x * way[0] + y * way[1] < 0.6 * 64
        assert abs(x * way[1] - y * way[0]) < 7


def test_turning_is_clockwise_and_growing_grows(tmp_path):
    """A dot right of a window's centre: down when turned clockwise, outwards when the picture grows."""
    width = 200
    spots = torch.full((3, width, width), 255, dtype=torch.uint8)
    for seed in range(2):
        write_picture(tmp_path / f"{seed}.png", spots - torch.randint(0, 90, (3, width, width), dtype=torch.uint8))
    sources = pictures(tmp_path)
    config = WindowConfig(source=str(tmp_path), frame_size=64, num_frames=9, noise_levels=0, shake_pixels=0)
    turn = render_window(config, sources, "train", "turning", 0).float().mean(1)
    grow = render_window(config, sources, "train", "scaling", 0).float().mean(1)
    assert best_angle(turn[4], turn[5]) > 0.05
    assert best_factor(grow[4], grow[5]) > 1.04


def warped(frame: torch.Tensor, angle: float, factor: float) -> torch.Tensor:
    """The frame turned clockwise on the screen and enlarged about its centre."""
    cosine, sine = np.cos(angle) / factor, np.sin(angle) / factor
    theta = torch.tensor([[[cosine, sine, 0], [-sine, cosine, 0]]], dtype=torch.float32)
    grid = torch.nn.functional.affine_grid(theta, [1, 1, *frame.shape], align_corners=False)
    return torch.nn.functional.grid_sample(frame[None, None], grid, align_corners=False)[0, 0]


def misfit(one: torch.Tensor, two: torch.Tensor) -> float:
    return float((one - two)[16:48, 16:48].square().mean())


def best_angle(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(min(np.linspace(-0.3, 0.3, 25), key=lambda angle: misfit(warped(first, angle, 1), second)))


def best_factor(first: torch.Tensor, second: torch.Tensor) -> float:
    return float(min(np.linspace(0.8, 1.25, 19), key=lambda factor: misfit(warped(first, 0, factor), second)))


def test_each_source_plays_in_both_directions_as_often_in_every_class(folder):
    """Clip speed 1 over one moving square: in half of the clips it goes backwards, so that it tells no class."""
    names = ["a", "b", "c"]
    for pair in range(4):
        chosen = [choose_source((0, 0, pair, index), names) for index in range(12)]
        assert sorted(chosen) == sorted(2 * [(name, way) for name in names for way in (False, True)])
        assert chosen[:6] != chosen[6:]


def test_clips_play_under_the_window_and_clip_speed_0_holds_one_frame(folder):
    sources = Sources(folder, {"train": ["deep/v0.mp4", "deep/v1.mp4"], "test": []})
    settings = {**SMALL, "travel": 0.02, "source": str(folder)}
    playing = render_window(WindowConfig(**settings), sources, "train", "horizontal", 0).float()
    held = render_window(WindowConfig(**settings, clip_speed=0.0), sources, "train", "horizontal", 0).float()
    assert (playing[0] - playing[-1]).abs().mean() > 3 * (held[0] - held[-1]).abs().mean()


@pytest.mark.parametrize("pair", list(WINDOW_PATHS))
@pytest.mark.parametrize(("width", "height"), [(1.0, 1.0), (1.8, 1.0), (1.0, 6.0)])
def test_windows_stay_within_the_picture(pair, width, height):
    for seed in range(40):
        rng = np.random.default_rng(seed)
        path = place_window(rng, WINDOW_PATHS[pair](rng, np.linspace(0, 1, 9)), width, height)
        low, high = path.centres - path.reach(), path.centres + path.reach()
        assert (low >= -1e-9).all()
        assert (high <= np.array([width, height]) + 1e-9).all()


def test_the_same_settings_make_the_same_files_whatever_the_workers(folder, made, tmp_path):
    make_windows(
        tmp_path / "again", WindowConfig(source=str(folder), pairs=tuple(WINDOW_PATHS), **SMALL, **COUNTS, workers=3)
    )
    for file in made.rglob("*.mp4"):
        assert (tmp_path / "again" / file.relative_to(made)).read_bytes() == file.read_bytes()


def test_files_that_cannot_be_used_are_left_out_by_name(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "in")
    whole = (tmp_path / "in" / "deep" / "v0.mp4").read_bytes()
    (tmp_path / "in" / "cut.mp4").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "in" / "text.jpg").write_text("no picture")
    (tmp_path / "in" / "copy.mp4").write_bytes(whole)
    write_picture(tmp_path / "in" / "tiny.png", texture(5, 20, 90))
    write_picture(tmp_path / "in" / "black.png", torch.zeros(3, 64, 64, dtype=torch.uint8))
    (tmp_path / "in" / "notes.txt").write_text("not looked at")
    report = make_windows(tmp_path / "out", WindowConfig(source=str(tmp_path / "in"), **SMALL, **COUNTS))
    copies = {"copy.mp4", "deep/v0.mp4"}
    assert set(report.left_out) - copies == {"cut.mp4", "text.jpg", "tiny.png", "black.png"}
    assert len(set(report.left_out) & copies) == 1
    assert all(report.left_out.values())
    assert sum(len(names) for names in report.sources.values()) == 6
    assert json.loads((tmp_path / "out" / "meta.json").read_text())["left_out"] == report.left_out


def test_own_parts_of_the_folder_count(folder, tmp_path):
    for part, kind in (("train", "p*.png"), ("val", "v*.mp4")):
        (tmp_path / part).mkdir()
        for file in folder.rglob(kind):
            shutil.copy(file, tmp_path / part)
    write_picture(tmp_path / "loose.png", texture(40))
    found = find_sources(tmp_path, needed={"train": 9, "test": 9}, test_ratio=0.3, seed=0)
    assert [found.names[part][0] for part in ("train", "test")] == ["train/p0.png", "val/v0.mp4"]
    assert list(found.left_out) == ["loose.png"]


def test_no_more_files_are_looked_at_than_are_needed(folder):
    found = find_sources(folder, needed={"train": 2, "test": 2}, test_ratio=0.5, seed=1)
    assert {part: len(names) for part, names in found.names.items()} == {"train": 2, "test": 2}


def test_a_part_without_clips_needs_no_sources(folder, tmp_path):
    report = make_windows(
        tmp_path / "out",
        WindowConfig(source=str(folder), **SMALL, train_per_class=1, test_per_class=0, pairs=("turning",)),
    )
    assert (report.num_train, report.num_test, report.sources["test"]) == (2, 0, [])


def test_too_few_sources_missing_folders_and_folders_in_each_other_are_errors(folder, tmp_path):
    few = tmp_path / "few"
    few.mkdir()
    for seed in range(3):
        write_picture(few / f"{seed}.png", texture(seed))
    with pytest.raises(ConfigError, match="3 can be used"):
        make_windows(tmp_path / "a", WindowConfig(source=str(few), **SMALL))
    with pytest.raises(ConfigError, match="nowhere"):
        make_windows(tmp_path / "b", WindowConfig(source=str(tmp_path / "nowhere"), **SMALL))
    for inside in (few, few / "out"):
        with pytest.raises(ConfigError, match="few"):
            make_windows(inside, WindowConfig(source=str(few), **SMALL, overwrite=True))
    with pytest.raises(ConfigError, match="source"):
        WindowConfig()
    with pytest.raises(ConfigError, match="meeting"):
        WindowConfig(source="a", pairs=("meeting",))
    assert len(list(few.iterdir())) == 3


def test_an_earlier_data_set_is_lost_only_to_one_that_can_be_made(made, folder, tmp_path):
    shutil.copytree(made, tmp_path / "out")
    write_picture(tmp_path / "one" / "a.png", texture(0))
    before = sorted((tmp_path / "out").rglob("*"))
    for source, overwrite in ((tmp_path / "one", True), (folder, False)):
        with pytest.raises(ConfigError):
            make_windows(tmp_path / "out", WindowConfig(source=str(source), **SMALL, overwrite=overwrite))
    assert sorted((tmp_path / "out").rglob("*")) == before


def test_a_source_that_goes_away_in_between_is_an_error_of_ours(tmp_path):
    sources = Sources(tmp_path, {"train": ["a.mp4", "b.mp4"], "test": []})
    with pytest.raises(VideoError):
        render_window(WindowConfig(source=str(tmp_path), **SMALL), sources, "train", "turning", 0)
