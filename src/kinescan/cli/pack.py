from typing import Annotated

import typer

from kinescan import runs
from kinescan.cli.options import DataSet, LabelReader, RecipeSettings, Split, Workers, json_option
from kinescan.cli.output import FAILED, print_json, reported
from kinescan.cli.terminal import print_text
from kinescan.runtime.quantities import byte_size

EXAMPLES = (
    "kinescan data pack VIDEOS shards/mine",
    "kinescan data pack data/ssv2 s3://bucket/ssv2 --reader ssv2 --size 256 --workers 16",
    "kinescan data pack train.csv shards/a --test test.csv --shard-mib 128 --json",
)


@reported
def command(
    source: DataSet,
    output: Annotated[str, typer.Argument(help="Folder for the shards, made if need be, or s3://... or gs://...")],
    settings: RecipeSettings = [],  # noqa: B006
    test: Annotated[str | None, typer.Option(help="The same for evaluation.")] = None,
    reader: LabelReader = None,
    split: Split = None,
    size: Annotated[
        int, typer.Option(help="Resize frames to this short side and code them once; 0 packs files as they are.", min=0)
    ] = 0,
    shard_mib: Annotated[int, typer.Option("--shard-mib", help="MiB of videos in one tar, about.", min=1)] = 512,
    workers: Workers = None,
    as_json: Annotated[bool, json_option("Print what was packed as JSON.")] = False,
) -> None:
    """Pack videos into shards (WebDataset's tars), with an index. Exits with 1 where videos could not be packed."""
    found = runs.pack.pack(
        source,
        output,
        test=test,
        reader=reader,
        split=split,
        overrides=settings,
        size=size,
        shard_mib=shard_mib,
        num_workers=workers,
    )
    if as_json:
        print_json(found.to_json())
    else:
        print_text(
            [
                f"{found.folder}: {found.num_videos} videos in {found.num_shards} shards, "
                f"{byte_size(found.num_bytes)}, {found.seconds:.1f} s",
                *(f"not packed: {name}: {reason}" for name, reason in found.lost.items()),
            ]
        )
    if found.lost:
        raise typer.Exit(FAILED)
