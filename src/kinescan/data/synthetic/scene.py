from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kinescan.data.synthetic.shapes import EXTENT, signed_distance
from kinescan.data.synthetic.textures import background_textures, object_textures
from kinescan.shapes import Pixels


@dataclass(frozen=True, kw_only=True)
class Sprite:
    """One textured object and where it is in every frame.

    Attributes:
        shape: its outline.
        texture_seed: what its texture is sampled from.
        family: kind of texture; None lets the seed choose.
        poses: [T, 4]: centre x and y and radius, each a fraction of the frame's side, and angle in radians
            (turning clockwise on the screen).
        hue: of its bright colour, in turns; None lets the seed choose.
        opacity: [T], 0 where there is nothing to see of it to 1; None: it is there all the time.
    """

    shape: str
    texture_seed: int
    family: str | None
    poses: Tensor
    hue: float | None = None
    opacity: Tensor | None = None


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A moving picture before noise, as a description.

    Attributes:
        background_seed: what the background's texture is sampled from.
        sprites: the objects, those in front last.
        num_frames: T of all of them; None: that of the first.
    """

    background_seed: int
    sprites: tuple[Sprite, ...]
    num_frames: int | None = None


def render(
    scene: Scene,
    *,
    frame_size: int,
    shake: Tensor | None = None,
    noise: Tensor | None = None,
    light: Tensor | None = None,
    contrast: float = 1.0,
) -> Pixels:
    """The frames of a scene.

    Args:
        scene: what there is to see; all sprites have the same number of frames T.
        frame_size: side of the square frame in pixels.
        shake: [T, 2], how far the camera is off in x and y, pixels; None: it stands still.
        noise: [T, 3, frame_size, frame_size], added to the pixels, in levels of 255; None: none.
        light: [T, 3], what the colours of each frame are multiplied by; None: they stay.
        contrast: what distances from middle grey are multiplied by, before noise.

    Returns:
        [T, 3, frame_size, frame_size], uint8.
    """
    num_frames = scene.sprites[0].poses.shape[0] if scene.num_frames is None else scene.num_frames
    shake = torch.zeros(num_frames, 2) if shake is None else shake
    canvas = background_textures([scene.background_seed] * num_frames, size=frame_size, shifts=shake)
    canvas = paste_sprites(canvas, scene.sprites, shake)
    if light is not None:
        canvas = canvas * light[:, :, None, None]
    return to_levels(canvas, contrast=contrast, noise=noise)


def paste_sprites(canvas: Tensor, sprites: Sequence[Sprite], shake: Tensor) -> Tensor:
    """Frames with the objects on them, the last in front.

    Args:
        canvas: [T, 3, S, S], in [0, 1].
        sprites: objects of T poses each.
        shake: [T, 2], how far all of them are off in x and y, pixels.

    Returns:
        [T, 3, S, S].
    """
    num_frames, size = canvas.shape[0], canvas.shape[-1]
    for sprite, texture in zip(sprites, _textures(sprites) if sprites else canvas[:0], strict=True):
        poses = sprite.poses * torch.tensor([size, size, size, 1.0])
        poses = torch.cat([poses[:, :2] + shake, poses[:, 2:]], dim=1)
        shapes = [sprite.shape] * num_frames
        canvas = paste(canvas, texture.expand(num_frames, -1, -1, -1), shapes, poses, opacity=sprite.opacity)
    return canvas


def to_levels(canvas: Tensor, *, contrast: float = 1.0, noise: Tensor | None = None) -> Pixels:
    """Colours in [0, 1] as bytes, with `contrast` and `noise` as in `render`."""
    if contrast != 1:
        canvas = 0.5 + contrast * (canvas - 0.5)
    levels = canvas * 255 if noise is None else canvas * 255 + noise
    return levels.round_().clamp_(0, 255).to(torch.uint8)


def _textures(sprites: Sequence[Sprite]) -> Tensor:
    """One for each object."""
    return object_textures(
        [sprite.texture_seed for sprite in sprites],
        [sprite.family for sprite in sprites],
        hues=[sprite.hue for sprite in sprites],
    )


def paste(
    canvas: Tensor, textures: Tensor, shapes: Sequence[str], poses: Tensor, *, opacity: Tensor | None = None
) -> Tensor:
    """Pictures with one object pasted onto each, its edge anti-aliased by its distance from the outline.

    Args:
        canvas: [F, 3, H, W], in [0, 1].
        textures: [F, 3, 64, 64], carried by the object as it turns and grows.
        shapes: F names of shapes.
        poses: [F, 4]: centre x and y and radius in pixels, angle in radians.
        opacity: [F], in [0, 1]; None: 1.

    Returns:
        [F, 3, H, W].
    """
    same = len(set(shapes)) == 1
    outlines = torch.stack([signed_distance(shape) for shape in (shapes[:1] if same else shapes)])
    maps = torch.cat([textures, outlines.unsqueeze(1).expand(len(shapes), -1, -1, -1)], dim=1)
    x, y, radius, angle = poses.unbind(1)
    left, right = _reach(x, radius, canvas.shape[3])
    top, bottom = _reach(y, radius, canvas.shape[2])
    if left >= right or top >= bottom:
        return canvas
    cosine, sine = torch.cos(angle) / (radius * EXTENT), torch.sin(angle) / (radius * EXTENT)
    columns = torch.arange(left, right, dtype=torch.float32) + 0.5 - x[:, None]  # [F, w]
    rows = torch.arange(top, bottom, dtype=torch.float32) + 0.5 - y[:, None]
    across = (cosine[:, None] * columns)[:, None, :] + (sine[:, None] * rows)[:, :, None]
    down = (cosine[:, None] * rows)[:, :, None] - (sine[:, None] * columns)[:, None, :]
    seen = F.grid_sample(
        maps, torch.stack([across, down], dim=-1), mode="bilinear", padding_mode="border", align_corners=True
    )
    cover = (0.5 - seen[:, 3:] * radius[:, None, None, None]).clamp(0, 1)
    if opacity is not None:
        cover = cover * opacity[:, None, None, None]
    under = canvas[:, :, top:bottom, left:right]
    pasted = canvas.clone()
    pasted[:, :, top:bottom, left:right] = torch.lerp(under, seen[:, :3], cover)
    return pasted


def _reach(centre: Tensor, radius: Tensor, side: int) -> tuple[int, int]:
    """First pixel, and the one after the last, that the object touches in any frame."""
    first, last = (centre - radius).min() - 1, (centre + radius).max() + 1
    return max(0, int(first.floor())), min(side, int(last.ceil()))
