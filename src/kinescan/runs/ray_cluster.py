"""The cluster of Ray that a job runs on: joined or started here, and looked at before work is given to it."""

import importlib
import logging
import os
import socket
from dataclasses import dataclass
from typing import Any

from kinescan.errors import ConfigError
from kinescan.fields import check_types
from kinescan.runtime.error_text import first_line
from kinescan.runtime.optional_package import optional_package
from kinescan.runtime.urls import mask_urls
from kinescan.version import __version__

logger = logging.getLogger(__name__)

EXTRA = "ray"
_KNOCK_SECONDS = 10.0
_STORE_BYTES = 256 * 2**20
"""Of Ray's shared memory where it is started here: names and rows alone go through it, and no pixels."""


@dataclass(frozen=True, kw_only=True)
class RaySettings:
    """How Ray is used.

    Attributes:
        address: of the cluster, as `ray.init` takes it; empty takes RAY_ADDRESS, or starts Ray on this machine.
        workers: processes that predict, each with the model.
        cpus: of each.
        gpus: of each; may be a fraction.
        part_rows: rows of a part: of what is predicted by one worker, written as one file, and done again where that
            worker is killed in its middle.

    Raises:
        ConfigError: a number is out of range.
    """

    address: str = ""
    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    part_rows: int = 128

    def __post_init__(self) -> None:
        check_types(self)
        for name, least in (("workers", 1), ("part_rows", 1), ("cpus", 0), ("gpus", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"ray.{name} must be at least {least}, got {getattr(self, name)}.")


def start(ray: Any, settings: RaySettings) -> None:
    """Joins the cluster, or starts Ray here.

    Raises:
        ConfigError: the cluster is not there, or refuses.
    """
    address = settings.address or os.environ.get("RAY_ADDRESS", "")
    try:
        knock(address)
    except OSError as error:
        raise ConfigError(
            f"the cluster of Ray at {address} cannot be joined ({_said(error)}). Start one with ray start --head, or "
            "leave ray.address out, and RAY_ADDRESS unset, to start Ray here."
        ) from error
    try:
        ray.init(
            address=address or "local",
            configure_logging=False,
            log_to_driver=False,
            # of a cluster that runs already, Ray refuses any answer to this
            include_dashboard=None if address else False,
            object_store_memory=None if address else _STORE_BYTES,
        )
    except Exception as error:  # Ray raises plain ones, too, as where a busy machine does not start it in time
        if not address:
            raise ConfigError(
                f"Ray did not start on this machine ({_said(error)}). Where other programs keep it busy, wait for them "
                "and run the same command again; what is done is kept."
            ) from error
        # Ray says no more than that it failed where a token is missing or wrong.
        raise ConfigError(
            f"the cluster of Ray at {address} cannot be joined, though something answers there ({_said(error)}). "
            "Clusters may ask for a token: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a file that holds it, "
            "such as ~/.ray/auth_token of the cluster's first machine. The port must be that of ray start (6379, or "
            "10001 after ray://), and the versions of Ray and Python those of the cluster."
        ) from error


def _said(error: Exception) -> str:
    return mask_urls(first_line(error))[:300]


def knock(address: str) -> None:
    """Passes where something listens at HOST:PORT or ray://HOST:PORT; Ray itself would try for minutes.

    Raises:
        OSError: nothing does.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_KNOCK_SECONDS).close()


def check_room(ray: Any, settings: RaySettings) -> None:
    """Some machine has what one worker asks for; Ray itself would wait for one without end.

    Raises:
        ConfigError: none has.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node.get("Alive")]
    for name, setting, asked in (("CPU", "cpus", settings.cpus), ("GPU", "gpus", settings.gpus)):
        most = max((node.get(name, 0.0) for node in nodes), default=0.0)
        if asked > most:
            raise ConfigError(
                f"ray.{setting}={asked:g} of each worker, and no machine of Ray has more than {most:g}. Ask for at "
                f"most that, or start Ray where there are more (ray start --num-{setting}=N)."
            )
    room = ray.cluster_resources().get("CPU", 0.0)
    if settings.workers * settings.cpus > room:
        logger.warning(
            "%d workers of %g CPUs each are more than Ray's %g CPUs: fewer work at a time",
            settings.workers,
            settings.cpus,
            room,
        )


def check_versions(ray: Any) -> None:
    """Every machine of the cluster has this version of kinescan.

    Raises:
        ConfigError: one has another, or none.
    """

    def version() -> str:
        # sent by value: it runs where kinescan is not installed, too
        try:
            return str(importlib.import_module("kinescan").__version__)
        except ImportError:
            return ""

    own = __version__
    affinity = optional_package("ray.util.scheduling_strategies", EXTRA).NodeAffinitySchedulingStrategy
    asked = ray.remote(num_cpus=0)(version)
    nodes = [node for node in ray.nodes() if node.get("Alive")]
    answers = ray.get(
        [asked.options(scheduling_strategy=affinity(node["NodeID"], soft=False)).remote() for node in nodes]
    )
    for node, found in zip(nodes, answers, strict=True):
        if found != own:
            has = f"kinescan {found}" if found else "no kinescan"
            raise ConfigError(
                f"{node.get('NodeManagerHostname', 'a machine')} of the cluster has {has}, and this machine kinescan "
                f"{own}. Install the same version everywhere."
            )
