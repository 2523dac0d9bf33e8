from typing import TYPE_CHECKING, Annotated, Any

import typer

import kinescan
from kinescan import runs
from kinescan.cli.options import json_option, settings_option
from kinescan.cli.output import print_json, reported
from kinescan.cli.own_modules import OwnModules, import_own_modules
from kinescan.cli.terminal import print_table, print_text

if TYPE_CHECKING:
    from kinescan.runs.profile import Profile

EXAMPLES = (
    "kinescan profile pks4_vit_b16 vit_b16 videomamba_tiny",
    "kinescan profile pks4_vit_b16 --frames 32 --num-classes 174 --repeats 0",
    "kinescan profile runs/own_videos_cpu --batch 8 --json",
)
MACS = ("GMACs", "with attention")


@reported
def command(
    models: Annotated[list[str], typer.Argument(help="Names in the zoo, runs' folders, or saved models.")],
    settings: Annotated[list[str], settings_option("Option of the models by name, such as window=5.")] = [],  # noqa: B006
    frames: Annotated[int | None, typer.Option(help="Frames of the view.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of a frame in pixels, for names in the zoo.")] = None,
    batch: Annotated[int, typer.Option(help="Views at once, for throughput and peak memory.", min=1)] = 1,
    num_classes: Annotated[int | None, typer.Option(help="Size of the head, for names in the zoo.")] = None,
    repeats: Annotated[int, typer.Option(help="Timed forward passes; 0 counts only.")] = 5,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    modules: OwnModules = [],  # noqa: B006
    as_json: Annotated[bool, json_option("Print the profiles as JSON.")] = False,
) -> None:
    """Parameters, MACs, memory and speed of models, side by side and part by part."""
    import_own_modules(modules)
    options = kinescan.config.parse_overrides(settings)
    profiles = [
        runs.profile.profile(
            model,
            num_frames=frames,
            image_size=size,
            num_clips=batch,
            num_classes=num_classes,
            options=options,
            repeats=repeats,
            device=device,
        )
        for model in models
    ]
    if as_json:
        print_json([found.to_json() for found in profiles])
        return
    _print_models(profiles)
    for found in profiles:
        _print_parts(found)
    print_text(
        (
            "",
            "1 MAC is 2 FLOPs; GMACs leave attention's own products out, as the counters of the field do.",
            "as published: by the convention of the PKS4 paper's tables, norms and whole products of frames included.",
            "kept: what a training step keeps of one clip for its backward pass, in float32.",
        )
    )


def _print_models(profiles: "list[Profile]") -> None:
    """A column for each model, a row for each number: as many models as fit stand side by side."""
    named = [_numbers(found) for found in profiles]
    rows = [(name, *(numbers.get(name, "-") for numbers in named)) for name in named[0] | named[-1]]
    print_table(("model", *(found.cost.model for found in profiles)), rows)


def _numbers(found: "Profile") -> dict[str, str]:
    cost, speed = found.cost, found.speed
    numbers = {
        "frames": f"{cost.num_frames}",
        "pixels": f"{cost.image_size}",
        "parameters": f"{cost.num_parameters / 1e6:.2f} M",
        "trained": "all" if not cost.num_frozen else f"{cost.num_trained / 1e6:.2f} M",
        MACS[0]: f"{cost.macs.without_attention / 1e9:.2f}",
        MACS[1]: f"{cost.macs.with_attention / 1e9:.2f}",
        "as published": f"{cost.macs.published / 1e9:.2f}",
        "kept": _mebibytes(sum(found.kept_bytes.values())),
    }
    if speed is not None:
        numbers |= {
            "time a view": f"{1000 * speed.latency_seconds:.1f} ms",
            "views/s": f"{speed.views_per_second:.2f}",
            "batch": f"{speed.num_clips}",
            "peak": "unknown" if speed.peak_bytes is None else _mebibytes(speed.peak_bytes),
            "device": speed.device,
        }
    return numbers


def _print_parts(found: "Profile") -> None:
    print(f"\n{found.cost.model}, part by part")
    columns = ("part", "parameters", "trained", *MACS, "kept")
    rows: list[tuple[Any, ...]] = []
    for part in found.cost.parts:
        row: tuple[Any, ...] = (
            part.name,
            f"{part.num_parameters:,}",
            f"{part.num_trained:,}",
            f"{part.macs.without_attention / 1e9:.3f}",
            f"{part.macs.with_attention / 1e9:.3f}",
            _mebibytes(found.kept_bytes[part.name]),
        )
        rows.append(row if found.speed is None else (*row, f"{1000 * found.speed.part_seconds[part.name]:.1f} ms"))
    print_table(columns if found.speed is None else (*columns, "time a view"), rows)


def _mebibytes(num_bytes: int) -> str:
    return f"{num_bytes / 2**20:,.1f} MiB"
