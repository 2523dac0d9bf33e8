from pathlib import Path
from typing import Annotated

import typer

from kinescan import web
from kinescan.cli.options import Host, Port, ServedModels, ServedVlm
from kinescan.cli.output import reported
from kinescan.cli.own_modules import OwnModules, import_own_modules

EXAMPLES = (
    "kinescan serve --model runs/causal",
    "kinescan serve --model a=runs/a --model b=runs/b --vlm VLM_FOLDER --media videos/",
    "kinescan serve --model runs/causal --host 0.0.0.0 --set limits.streams=64",
)


@reported
def command(
    model: ServedModels = [],  # noqa: B006
    vlm: ServedVlm = None,
    media: Annotated[Path | None, typer.Option(help="Folder below which requests may name videos.")] = None,
    allow_url: Annotated[
        list[str],
        typer.Option(metavar="URL", help="Beginning of addresses that videos may be fetched from. Can be repeated."),
    ] = [],  # noqa: B006
    host: Host = "127.0.0.1",
    port: Port = 8000,
    no_page: Annotated[bool, typer.Option("--no-page", help="Leave out the page of kinescan web.")] = False,
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="limits.streams=16, limits.body_bytes=1000000, ..."),
    ] = [],  # noqa: B006
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    modules: OwnModules = [],  # noqa: B006
) -> None:
    """Answer HTTP requests and WebSocket streams; the API is in docs/serving.md."""
    import_own_modules(modules)
    limits = web.serving.parse_limits(settings)
    web.serving.serve(
        web.serving.make_config(
            model,
            vlm=vlm,
            media=media,
            allow_urls=allow_url,
            host=host,
            port=port,
            device=device,
            page=not no_page,
            limits=limits,
        )
    )
