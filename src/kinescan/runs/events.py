"""What `--events` and `--set` say of events: rules, files, webhooks."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from kinescan.config import parse_overrides
from kinescan.errors import ConfigError
from kinescan.events.disk_queue import QueueInUseError
from kinescan.events.rules import build_rules, read_content
from kinescan.events.sinks import CsvFile, JsonLines, SharedSink, Sink
from kinescan.events.webhook import Webhook, WebhookSettings
from kinescan.runtime.urls import is_url, mask_url
from kinescan.settings import build_settings, closest

STANDARD_OUTPUT = "-"
SECRET_VARIABLE = "KINESCAN_WEBHOOK_SECRET"
_FILES = {".jsonl": JsonLines, ".csv": CsvFile}
_RULES = (".toml", ".json")
_MOST_QUEUES = 100
_ALLOWED = (
    "a file of rules (.toml, .json), a file to write (.jsonl, .csv), a webhook (http://..., https://...), or - to only "
    "print events"
)


@dataclass(frozen=True, kw_only=True)
class EventPlan:
    """Where events go, and what was reported about their rules.

    Attributes:
        rules: what the file of rules holds, but for its outputs; empty where none was given.
        where: name of that file.
        changes: settings of rules that go before those of files.
        files: that events are written to.
        webhooks: that are called with events.
    """

    rules: Mapping[str, Any] = field(default_factory=dict)
    where: str = "events"
    changes: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    webhooks: tuple[WebhookSettings, ...] = ()

    def open_sinks(
        self,
        state: str | Path | None = None,
        *,
        stream: str | Path = "",
        shared: dict[str, Sink] | None = None,
    ) -> list[Sink]:
        """Opens what is written and called.

        Args:
            state: file of the stream's state, beside which messages wait.
            stream: source or name of the stream: where no state is kept, its messages wait in a folder of its own.
            shared: sinks of other streams that can be told of this one, too: files, and webhooks whose queue is named.
                Opened ones are added.

        Raises:
            ConfigError: a file or folder cannot be written, or a secret is not set.
        """
        sinks: list[Sink] = []
        known = {} if shared is None else shared
        try:
            for name in self.files:
                if name not in known:
                    known[name] = _FILES[Path(name).suffix.lower()](name)
                sinks.append(known[name])
            for webhook in self.webhooks:
                if webhook.queue is None:
                    sinks.append(_open_webhook(webhook, state, stream))
                    continue
                # of several streams, one sends what waits in the queue
                if repr(webhook) not in known:
                    known[repr(webhook)] = SharedSink(Webhook(webhook, webhook.queue, secret=_secret_of(webhook)))
                hook = known[repr(webhook)]
                assert isinstance(hook, SharedSink), "it was put there as one"
                sinks.append(hook.joined())
        except ConfigError:
            for sink in sinks:
                sink.close(0.0)
            raise
        return sinks


@dataclass(frozen=True, kw_only=True)
class _Outputs:
    """What a file of rules may hold besides rules.

    Attributes:
        files: that events are written to.
        webhook: settings of each webhook that is called.
    """

    files: list[str] = field(default_factory=list)
    webhook: list[WebhookSettings] = field(default_factory=list)


def plan_events(targets: Sequence[str], overrides: Sequence[str] = ()) -> EventPlan:
    """Reads what `--events` was given, and `--set events.*` and `--set webhook.*`.

    Args:
        targets: files of rules, files to write, webhooks, or "-".
        overrides: "events.on=0.6" and the like for rules; "webhook.timeout_seconds=5" and the like for every webhook.

    Raises:
        ConfigError: a target is not one of these, or a setting makes no sense.
    """
    changes = parse_overrides(overrides)
    unknown = sorted(changes.keys() - {"events", "webhook"})
    if unknown:
        raise ConfigError(f"unknown key {unknown[0]!r}. {closest(unknown[0], ['events', 'webhook'])}")
    for key, value in changes.items():
        if not isinstance(value, Mapping):
            raise ConfigError(f"{key} is a table of settings: give --set {key}.NAME=VALUE.")
    of_webhooks = changes.get("webhook", {})
    if "url" in of_webhooks:
        raise ConfigError("webhook.url: give the address as --events URL, or in a file of rules.")
    build_rules(changes.get("events", {}))
    files: list[str] = []
    webhooks: list[dict[str, Any]] = []
    rules: Mapping[str, Any] = {}
    where = ""
    for target in targets:
        suffix = Path(target).suffix.lower()
        if is_url(target):
            webhooks.append({"url": target})
        elif suffix in _FILES:
            files.append(target)
        elif suffix in _RULES:
            if where:
                raise ConfigError(f"events: {where} and {target} both hold rules. Give one of them.")
            where, (rules, outputs) = target, _read(target)
            files += outputs.files
            webhooks += [_given(webhook) for webhook in outputs.webhook]
        elif target != STANDARD_OUTPUT:
            raise ConfigError(f"--events {mask_url(target)}: neither of what is allowed: {_ALLOWED}.")
    twice = [name for name in files if files.count(name) > 1]
    if twice:
        raise ConfigError(f"events: {twice[0]} is named twice. Name it once.")
    built = tuple(build_settings(WebhookSettings, {**of_webhooks, **given}, where="webhook") for given in webhooks)
    return EventPlan(
        rules=rules, where=where or "events", changes=changes.get("events", {}), files=tuple(files), webhooks=built
    )


def _read(path: str) -> tuple[dict[str, Any], _Outputs]:
    """The rules in a file, and its outputs."""
    content = read_content(path)
    names = {entry.name for entry in fields(_Outputs)}
    given = {name: value for name, value in content.items() if name in names}
    if isinstance(given.get("webhook"), dict):
        given["webhook"] = [given["webhook"]]
    outputs = build_settings(_Outputs, given, where=path)
    for name in outputs.files:
        if Path(name).suffix.lower() not in _FILES:
            raise ConfigError(f"{path}: files: {name}: allowed are names that end in {' or '.join(_FILES)}.")
    return {name: value for name, value in content.items() if name not in names}, outputs


def _given(webhook: WebhookSettings) -> dict[str, Any]:
    """What a file says of a webhook, less what it leaves as it is."""
    usual = WebhookSettings(url=webhook.url)
    named = {entry.name: getattr(webhook, entry.name) for entry in fields(webhook)}
    return {name: value for name, value in named.items() if name == "url" or value != getattr(usual, name)}


def _open_webhook(webhook: WebhookSettings, state: str | Path | None, stream: str | Path) -> Webhook:
    """A webhook whose queue was not named.

    Raises:
        ConfigError: no folder can be written, the secret is not set, or another process has the same state.
    """
    secret = _secret_of(webhook)
    if state is not None:
        return Webhook(webhook, f"{state}.webhook-{_digest(webhook.url)}", secret=secret)
    usual = f"webhook-{_digest(webhook.url)}-{_digest(str(stream))}"
    for number in range(1, _MOST_QUEUES):
        # a process that does the same has the first one
        with suppress(QueueInUseError):
            return Webhook(webhook, usual if number == 1 else f"{usual}-{number}", secret=secret)
    return Webhook(webhook, f"{usual}-{_MOST_QUEUES}", secret=secret)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:8]


def _secret_of(webhook: WebhookSettings) -> str | None:
    if webhook.secret_env is None:
        return os.environ.get(SECRET_VARIABLE) or None
    secret = os.environ.get(webhook.secret_env)
    if not secret:
        raise ConfigError(
            f"the webhook {mask_url(webhook.url)} signs with the secret in the environment variable "
            f"{webhook.secret_env}, which is not set. Set it: export {webhook.secret_env}=..."
        )
    return secret
