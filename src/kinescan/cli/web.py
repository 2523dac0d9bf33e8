from typing import Annotated

import typer

from kinescan import web
from kinescan.cli.options import Host, Port, ServedModels, ServedVlm
from kinescan.cli.output import reported
from kinescan.cli.own_modules import OwnModules, import_own_modules
from kinescan.runtime.optional_package import optional_package

EXAMPLES = (
    "kinescan web --model runs/causal",
    "kinescan web --model a=runs/a --model b=runs/b",
    "kinescan web --model runs/causal --set limits.video_seconds=60",
)


@reported
def command(
    model: ServedModels = [],  # noqa: B006
    vlm: ServedVlm = None,
    host: Host = "127.0.0.1",
    port: Port = 7860,
    settings: Annotated[
        list[str],
        typer.Option("--set", metavar="KEY=VALUE", help="limits.video_seconds=600, limits.body_bytes=1000000, ..."),
    ] = [],  # noqa: B006
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    modules: OwnModules = [],  # noqa: B006
) -> None:
    """Open a page: drop a video or use the camera, and see what the model sees. The service is there, too."""
    import_own_modules(modules)
    optional_package("gradio", "web")
    limits = web.serving.parse_limits(settings)
    web.serving.serve(web.serving.make_config(model, vlm=vlm, host=host, port=port, device=device, limits=limits))
