from pathlib import Path

import pytest

from kinescan.errors import ConfigError
from kinescan.events.disk_queue import QueueInUseError
from kinescan.events.sinks import CsvFile, JsonLines, Sink
from kinescan.events.webhook import Webhook
from kinescan.runs.events import plan_events


def test_targets_are_told_apart(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(
        'on = 0.7\nfiles = ["more.csv"]\n[classes.fall]\non = 0.9\n'
        '[[webhook]]\nurl = "https://a.example/x"\ntimeout_seconds = 3.0\n[[webhook]]\nurl = "https://b.example/y"\n'
    )
    plan = plan_events(
        ["a.jsonl", str(rules), "http://me:pw@c.example/z", "-"],
        ["events.least_seconds=1.0", "webhook.timeout_seconds=5.0", "webhook.capacity=7"],
    )
    assert plan.rules == {"on": 0.7, "classes": {"fall": {"on": 0.9}}}
    assert plan.changes == {"least_seconds": 1.0}
    assert plan.files == ("a.jsonl", "more.csv")
    # what is said of one goes before what is said of all
    assert [(hook.url, hook.timeout_seconds, hook.capacity) for hook in plan.webhooks] == [
        ("https://a.example/x", 3.0, 7),
        ("https://b.example/y", 5.0, 7),
        ("http://me:pw@c.example/z", 5.0, 7),
    ]


def test_processes_with_one_webhook_have_a_queue_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_events(["http://127.0.0.1:9/x"])
    # a source, another one, and the first one again
    opened = [plan.open_sinks(stream=source) for source in ("rtsp://a/1", "rtsp://a/2", "rtsp://a/1")]
    hooks = [sink for sinks in opened for sink in sinks if isinstance(sink, Webhook)]
    folders = [hook.queue.folder for hook in hooks]
    assert len(set(folders)) == 3
    for hook in hooks:
        hook.close(0.0)
    # after a restart, each finds what waits for it
    again = plan.open_sinks(stream="rtsp://a/2")[0]
    assert isinstance(again, Webhook)
    assert again.queue.folder == folders[1]
    again.close(0.0)


def test_a_shared_webhook_is_closed_by_its_last_stream(tmp_path: Path) -> None:
    plan = plan_events(["http://127.0.0.1:9/x"], [f"webhook.queue={tmp_path / 'queue'}"])
    shared: dict[str, Sink] = {}
    (first,), (second,) = (plan.open_sinks(stream=name, shared=shared) for name in ("a", "b"))
    first.close(0.0)
    with pytest.raises(QueueInUseError):
        plan.open_sinks()
    second.close(0.0)
    (alone,) = plan.open_sinks()
    alone.close(0.0)


def test_a_file_with_one_webhook_and_no_rules(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text('{"webhook": {"url": "http://a.example/x"}}')
    plan = plan_events([str(tmp_path / "a.json")])
    assert (plan.rules, len(plan.webhooks)) == ({}, 1)


@pytest.mark.parametrize(
    ("targets", "overrides", "named"),
    [
        (["events.txt"], [], r"events\.txt"),
        (["events"], [], "allowed"),
        (["rtsp://user:secret@host/x"], [], "http"),
        (["a.csv", "a.csv"], [], "twice"),
        (["missing.toml"], [], r"missing\.toml"),
        (["-"], ["event.on=0.5"], "'events'"),
        (["-"], ["events=0.5"], "events.NAME"),
        (["-"], ["events.onn=0.5"], "'on'"),
        (["-"], ["events.on=2.0"], "on"),
        (["-"], ["webhook.url=http://a/b"], "--events URL"),
        (["http://a/b"], ["webhook.speed=1"], "speed"),
    ],
)
def test_what_is_none_of_them_is_refused(targets: list[str], overrides: list[str], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as caught:
        plan_events(targets, overrides)
    assert "user:secret" not in str(caught.value)


@pytest.mark.parametrize(
    "text", ['files = ["a.txt"]', "files = 3", "webhook = 3", '[webhook]\nurl = "ftp://x"', "[webhook]\nspeed = 1"]
)
def test_places_to_write_in_a_file_are_checked(tmp_path: Path, text: str) -> None:
    (tmp_path / "a.toml").write_text(text)
    with pytest.raises(ConfigError):
        plan_events([str(tmp_path / "a.toml")])


def test_two_files_of_rules_are_one_too_many(tmp_path: Path) -> None:
    for name in ("a.toml", "b.toml"):
        (tmp_path / name).write_text("on = 0.6")
    with pytest.raises(ConfigError, match=r"b\.toml"):
        plan_events([str(tmp_path / "a.toml"), str(tmp_path / "b.toml")])


def test_sinks_are_opened_and_messages_wait_beside_the_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    plan = plan_events(["a.jsonl", "b.csv", "http://127.0.0.1:9/x"])
    sinks = plan.open_sinks("camera.state")
    assert [type(sink) for sink in sinks] == [JsonLines, CsvFile, Webhook]
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["camera.state.webhook-aacab7bc"]
    for sink in sinks:
        sink.close(0.0)


def test_a_secret_that_is_named_has_to_be_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MY_SECRET", raising=False)
    plan = plan_events(["a.jsonl", "http://127.0.0.1:9/x"], ["webhook.secret_env=MY_SECRET"])
    with pytest.raises(ConfigError, match="MY_SECRET"):
        plan.open_sinks()
