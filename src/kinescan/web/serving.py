"""Starts the service; what needs the extra `serve` is loaded here, when it is needed."""

import importlib
import importlib.util
import logging
import os
import resource
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from kinescan.config import parse_overrides
from kinescan.errors import ConfigError
from kinescan.runs.folder import model_folder
from kinescan.runtime.optional_package import optional_package
from kinescan.settings import build_settings
from kinescan.web.engine import check_models
from kinescan.web.settings import ServeConfig, ServeLimits

logger = logging.getLogger(__name__)

KEY_VARIABLE = "KINESCAN_API_KEY"
_DRAIN_SECONDS = 20


def parse_limits(overrides: Sequence[str]) -> dict[str, Any]:
    """The limits of a service that `--set limits.KEY=VALUE` names.

    Args:
        overrides: "limits.key=value" each.

    Raises:
        ConfigError: one is not a setting, or not of the limits.

    Example:
        >>> parse_limits(["limits.streams=16"])
        {'streams': 16}
    """
    values = parse_overrides(overrides)
    limits = values.pop("limits", {})
    if values or not isinstance(limits, dict):
        raise ConfigError("--set takes settings of limits, as in --set limits.streams=16.")
    return limits


def make_config(
    models: Sequence[str],
    *,
    vlm: str | None = None,
    media: Path | None = None,
    allow_urls: Sequence[str] = (),
    host: str = "127.0.0.1",
    port: int = 8000,
    device: str = "auto",
    page: bool = True,
    limits: dict[str, Any] | None = None,
) -> ServeConfig:
    """The settings of a service as the command line gives them; the API key comes from KINESCAN_API_KEY.

    Args:
        models: each FOLDER or NAME=FOLDER; none: the newest run or else the motion
            model that comes with the package; with a VLM, no classifier.
        vlm: see `ServeConfig`.
        media: see `ServeConfig`.
        allow_urls: see `ServeConfig`.
        host: see `ServeConfig`.
        port: see `ServeConfig`.
        device: see `ServeConfig`.
        page: see `ServeConfig`.
        limits: fields of `ServeLimits`.

    Raises:
        ConfigError: a setting makes no sense, or no model is known.
    """
    named: dict[str, str] = {}
    for entry in models:
        name, equals, folder = entry.partition("=")
        if not equals or "/" in name:
            name, folder = Path(entry).name, entry
        if name in named:
            raise ConfigError(f"two models are called {name}. Name them: --model NAME=FOLDER.")
        named[name] = model_folder(folder, hint="--model RUN")
    if not named and vlm is None:
        folder = model_folder(None, hint="--model RUN", or_shipped=True)
        named["default"] = folder
    config = ServeConfig(
        models=named,
        vlm=vlm,
        media=media,
        allow_urls=tuple(allow_urls),
        host=host,
        port=port,
        api_key=os.environ.get(KEY_VARIABLE) or None,
        device=device,
        page=page,
        limits=build_settings(ServeLimits, limits or {}, where="limits"),
    )
    check_models(config)
    return config


def serve(config: ServeConfig) -> None:
    """Answers requests until SIGTERM or Ctrl-C; then those under way are finished.

    Raises:
        ConfigError: the address is taken, or a model cannot be served.
        DependencyError: the extra `serve` is not installed.
    """
    for name in ("fastapi", "uvicorn", "websockets", "python_multipart"):
        optional_package(name, "serve")
    bound = bound_socket(config.host, config.port)
    try:
        page = importlib.import_module("kinescan.web.page").mount_page if _has_page(config) else None
        app = importlib.import_module("kinescan.web.app").build_app(config, mount=page)
        http = importlib.import_module("kinescan.web.connections").protocol(config.limits)
        _more_files(config.limits.connections)
        uvicorn: Any = optional_package("uvicorn", "serve")
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=http,
                ws="websockets-sansio",
                log_config=None,
                access_log=False,
                server_header=False,
                ws_max_size=max(config.limits.frame_bytes * 4 // 3 + 65_536, 2**20),
                ws_max_queue=4,
                ws_ping_interval=config.limits.stall_seconds,
                ws_ping_timeout=config.limits.stall_seconds,
                backlog=128,
                timeout_keep_alive=15,
                timeout_graceful_shutdown=_DRAIN_SECONDS,
                h11_max_incomplete_event_size=65_536,
            )
        )
        port = bound.getsockname()[1]
        shown = f"[{config.host}]" if ":" in config.host else config.host
        logger.info("listening at http://%s:%d", shown, port)
        server.run(sockets=[bound])
    finally:
        bound.close()


def _has_page(config: ServeConfig) -> bool:
    """Whether the page is wanted and its package is there; the log says where it is not."""
    if config.page and importlib.util.find_spec("gradio") is None:
        logger.info("no page: it needs gradio (pip install 'kinescan[web]')")
        return False
    return config.page


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket at the address, before a model is opened.

    Args:
        host: name or number of this machine.
        port: 0 for any that is free.

    Raises:
        ConfigError: it is taken, or not an address of this machine.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        # with the protocol's number: asyncio sends small packets at once (TCP_NODELAY) only where a socket says TCP
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"{host} is not an address of this machine ({error.strerror}).") from None
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigError(f"{host}:{port} cannot be listened at ({error.strerror}). Choose another --port.") from None
    return bound


def _more_files(connections: int) -> None:
    """Room for that many open sockets and some files, as far as the system allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + 512
    if soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted if hard < 0 else min(wanted, hard), hard))
