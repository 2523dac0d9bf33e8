"""`kinescan data convert` on small exports in the published formats of each tool."""

import csv
import io
import json
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Rows = list[tuple[str, str, str, str]]
Convert = Callable[..., Rows]
FALL: Rows = [("a.mp4", "0.5", "1.25", "fall")]
NOTHING: Rows = [("b.mp4", "", "", "")]


def said(convert: Any) -> str:
    return " ".join(str(convert.said).split())  # long paths break the lines elsewhere


# Label Studio


def task(*results: object, video: str = "/data/upload/3/0a1b2c3d-a.mp4", **more: object) -> dict[str, object]:
    return {"id": 7, "data": {"video": video}, "annotations": [{"result": list(results), **more}]}


def timeline(start: object, end: object, *labels: str) -> dict[str, object]:
    value = {"ranges": [{"start": start, "end": end}], "timelinelabels": list(labels)}
    return {"type": "timelinelabels", "from_name": "t", "to_name": "video", "value": value}


def test_label_studio_ranges_that_end_before_their_start_are_listed(convert: Convert) -> None:
    text = json.dumps([task(timeline(30, 28, "run"), timeline(11, 25, "fall"))])
    assert convert("x.json", text, "--fps", "20", code=1) == FALL
    assert "'run'" in said(convert)


def test_label_studio_timelines_count_frames_from_1(convert: Convert) -> None:
    empty = task(video="/data/local-files/?d=clips/b.mp4")
    text = json.dumps([task(timeline(11, 25, "fall")), empty])
    assert convert("x.json", text, "--fps", "20") == [*FALL, *NOTHING]
    assert "give it with --fps" in convert("x.json", text, code=2)
    minimal = [{"id": 1, "video": "https://host/path/a.mp4?key=1", "t": [timeline(11, 25, "fall")["value"]]}]
    assert convert("x.json", json.dumps(minimal), "--fps", "20") == FALL
    kept = task(timeline(11, 25, "fall"), video="/data/upload/3/0a1b2c3d-lost.mp4")
    assert convert("x.json", json.dumps([kept]), "--fps", "20", found=False) == [("lost.mp4", "0.5", "1.25", "fall")]
    rated = task(timeline(11, 25, "fall"))
    rated["data"] = {"video": "s3://bucket/a.mp4", "fps": 20}
    assert convert("x.json", json.dumps(rated)) == FALL


def test_label_studio_tables_and_json_min_have_a_row_for_each_annotation(convert: Convert) -> None:
    def row(task: int, updated: str, *ranges: dict[str, object], video: str = "/data/upload/3/0a1b2c3d-a.mp4") -> Any:
        regions = {"tricks": list(ranges)} if ranges else {}
        return {"annotation_id": 4, "annotator": 1, "id": task, "lead_time": 1.5, "updated_at": updated, **regions} | {
            "video": video
        }

    old = row(1, "2026-01-01T10:00:00Z", timeline(1, 5, "old")["value"])  # type: ignore[arg-type]
    new = row(1, "2026-02-01T10:00:00Z", timeline(11, 25, "fall")["value"])  # type: ignore[arg-type]
    tasks = [old, new, row(2, "2026-01-01T10:00:00Z", video="/data/upload/3/0a1b2c3d-b.mp4")]
    assert convert("x.json", json.dumps(tasks), "--fps", "20") == [*FALL, *NOTHING]
    for sign, name in ((",", "x.csv"), ("\t", "x.tsv")):
        text = io.StringIO()
        table = csv.writer(text, delimiter=sign)
        columns = ("annotation_id", "annotator", "id", "lead_time", "tricks", "updated_at", "video")
        table.writerow(columns)
        for one in tasks:
            cells = (one.get(column, "") for column in columns)
            table.writerow([json.dumps(cell) if isinstance(cell, list) else cell for cell in cells])
        assert convert(name, text.getvalue(), "--fps", "20") == [*FALL, *NOTHING]
        assert "several annotations" in said(convert)


def test_label_studio_names_of_files_with_blanks_are_found(convert: Convert, three_seconds: Path) -> None:
    (three_seconds / "odd (1).mp4").write_bytes((three_seconds / "a.mp4").read_bytes())
    for name in ("odd_1.mp4", "0a1b2c3d-odd_1.mp4", "odd%20(1).mp4"):
        text = json.dumps([task(timeline(11, 25, "fall"), video=f"/data/upload/3/{name}")])
        assert convert("x.json", text, "--fps", "20") == [("odd (1).mp4", "0.5", "1.25", "fall")]
    (three_seconds / "odd (1).mp4").unlink()


def test_label_studio_takes_the_newest_annotation_and_leaves_unlabelled_tasks_out(convert: Convert) -> None:
    several = task(timeline(1, 2, "old"), updated_at="2026-01-01")
    newer = [{"result": [timeline(11, 25, "fall")], "updated_at": "2026-02-01"}, {"was_cancelled": True, "result": []}]
    several["annotations"] += newer  # type: ignore[operator]
    unlabelled = {"data": {"video": "b.mp4"}, "annotations": []}
    assert convert("x.json", json.dumps([several, unlabelled]), "--fps", "20") == FALL
    assert "several annotations" in said(convert)
    assert "no annotation yet" in said(convert)


def test_label_studio_audio_regions_and_tracked_boxes_are_read(convert: Convert) -> None:
    audio = {"type": "labels", "value": {"start": 0.5, "end": 1.25, "labels": ["fall"]}}
    assert convert("x.json", json.dumps([task(audio)])) == FALL
    keys = [{"frame": 11, "enabled": True}, {"frame": 25, "enabled": False}, {"frame": 41, "enabled": True}]
    box = {"framesCount": 60, "duration": 3.0, "labels": ["fall"], "sequence": keys}
    boxes = [task({"type": "videorectangle", "value": box}, {"type": "choices", "value": {"choices": ["x"]}})]
    assert convert("x.json", json.dumps(boxes)) == [*FALL, ("a.mp4", "2", "3", "fall")]
    assert "1 regions" in said(convert)


def test_label_studio_lists_what_is_wrong(convert: Convert) -> None:
    bad = [timeline(None, 2, "x"), timeline(11, 25), timeline(70, 90, "late"), timeline(11, 25, "fall")]
    tasks = [task(*bad), {"id": 7, "data": {"text": "no"}, "annotations": [{"result": []}]}]
    assert convert("x.json", json.dumps(tasks), "--fps", "20", code=1) == [*FALL, ("a.mp4", "3.45", "4.5", "late")]
    for text in ("no times that can be read", "no label", "task 7: its data names no", "beyond the video's end"):
        assert text in said(convert)


def per_region(key: str, said: object, control: str, base: dict[str, object], **more: object) -> dict[str, object]:
    """What a control with perRegion exports: a region of its own, with the times of the one that it is about."""
    times = {name: value for name, value in base["value"].items() if not name.endswith("labels")}  # type: ignore[attr-defined]
    return {"type": key, "from_name": control, "to_name": "video", "value": {**times, key: said}, **more}


def test_label_studio_controls_for_each_region_are_attributes(convert: Convert) -> None:
    fall, run = {**timeline(11, 25, "fall"), "id": "r1"}, {**timeline(31, 45, "run"), "id": "r2"}
    about = [
        per_region("choices", ["hard"], "how", fall, id="r1"),
        per_region("text", ["he slips"], "note", fall, id="r1"),
        per_region("taxonomy", [["indoor", "kitchen"]], "where", fall, id="r1"),
        per_region("rating", 4, "sure", run, id="r2"),
        {"type": "choices", "from_name": "scene", "to_name": "video", "id": "s", "value": {"choices": ["night"]}},
    ]
    text = json.dumps([task(fall, run, *about)])
    both = [*FALL, ("a.mp4", "1.5", "2.25", "run")]
    assert convert("x.json", text, "--fps", "20") == both
    assert {"how", "note", "sure", "where"} <= set(re.findall(r"\w+", said(convert)))
    for label, expected in (("label,attribute:how", "fall hard"), ("attribute:where", "indoor/kitchen")):
        assert convert("x.json", text, "--fps", "20", "--label", label) == [("a.mp4", "0.5", "1.25", expected)]
    assert convert("x.json", text, "--fps", "20", "--where", "attribute:sure=4") == both[1:]
    assert "no attribute 'who'" in convert("x.json", text, "--fps", "20", "--label", "attribute:who", code=2)


def test_label_studio_json_min_matches_what_is_said_of_a_region_by_its_times(convert: Convert) -> None:
    fall, hard = timeline(11, 25, "fall"), per_region("choices", ["hard"], "how", timeline(11, 25))
    minimal = [{"id": 1, "video": "a.mp4", "annotation_id": 2, "t": [fall["value"]], "how": [hard["value"]]}]
    assert convert("x.json", json.dumps(minimal), "--fps", "20") == FALL
    found = convert("x.json", json.dumps(minimal), "--fps", "20", "--label", "label,attribute:how")
    assert found == [("a.mp4", "0.5", "1.25", "fall hard")]


def test_label_studio_boxes_without_a_label_are_called_as_their_choices(convert: Convert) -> None:
    keys = [{"frame": 11, "enabled": True}, {"frame": 25, "enabled": False}]
    box = {"type": "videorectangle", "id": "b", "value": {"framesCount": 60, "duration": 3.0, "sequence": keys}}
    assert convert("x.json", json.dumps([task(box, per_region("choices", ["fall"], "what", box, id="b"))])) == FALL
    alone = per_region("choices", ["fall"], "what", timeline(11, 25))
    assert convert("x.json", json.dumps([task(alone)]), "--fps", "20") == FALL


def test_label_studio_several_videos_in_a_task_are_told_apart(convert: Convert) -> None:
    def tasks(*targets: str, **data: str) -> str:
        regions = [{**timeline(11, 25, f"fall{n}"), "to_name": target} for n, target in enumerate(targets)]
        return json.dumps([{"id": 1, "data": data, "annotations": [{"result": regions}]}])

    named = tasks("video2", "video1", video1="a.mp4", video2="b.mp4")
    both = [("a.mp4", "0.5", "1.25", "fall1"), ("b.mp4", "0.5", "1.25", "fall0")]
    assert convert("x.json", named, "--fps", "20") == both
    assert convert("x.json", tasks("v", "w", left="a.mp4", right="b.mp4"), "--fps", "20", code=1) == []
    assert "left (a.mp4), right (b.mp4)" in said(convert)
    assert convert("x.json", tasks("v", video="a.mp4", poster="b.mp4"), "--fps", "20")[0][0] == "a.mp4"
    assert len(convert("x.json", tasks("v", "w", video="a.mp4", audio="a.mp4"), "--fps", "20")) == 2


def test_label_studio_each_task_has_its_own_rate(convert: Convert) -> None:
    keys = [{"frame": 11, "enabled": True}, {"frame": 25, "enabled": False}]
    box = {"type": "videorectangle", "value": {"framesCount": 60, "duration": 3.0, "labels": ["x"], "sequence": keys}}
    tasks = [task(box, timeline(11, 25, "fall")), task(timeline(22, 50, "run"), video="b.mp4")]
    expected = [*FALL, ("a.mp4", "0.5", "1.25", "x"), ("b.mp4", "0.525", "1.25", "run")]
    assert convert("x.json", json.dumps(tasks), "--fps", "40") == expected
    assert "20 frames a second" in said(convert)
    seconds = {"type": "labels", "value": {"start": 0.5, "end": 1.25, "labels": ["fall"]}}
    both = [task(seconds), task(timeline(22, 50, "run"), video="b.mp4")]
    assert convert("x.json", json.dumps(both), "--fps", "40") == [*FALL, ("b.mp4", "0.525", "1.25", "run")]


def test_label_studio_older_and_empty_exports(convert: Convert) -> None:
    older = {"data": {"video": "a.mp4"}, "completions": [{"result": [timeline(11, 25, "fall")]}]}
    assert convert("x.json", json.dumps([older]), "--fps", "20") == FALL
    assert "no annotation" in convert("x.json", "[]", code=2)
    noon = task(timeline(11, 25, "fall"), updated_at="2026-01-01T12:00:00Z")
    # an hour earlier, though its text is greater
    noon["annotations"] += [{"result": [timeline(1, 2, "old")], "updated_at": "2026-01-01T13:00:00+02:00"}]  # type: ignore[operator]
    assert convert("x.json", json.dumps([noon]), "--fps", "20") == FALL


# ELAN


def eaf(tiers: str, slots: str = "", media: str = 'RELATIVE_MEDIA_URL="./clips/a.mp4" MIME_TYPE="video/mp4"') -> str:
    values = '<TIME_SLOT TIME_SLOT_ID="ts1" TIME_VALUE="500"/><TIME_SLOT TIME_SLOT_ID="ts2" TIME_VALUE="1250"/>'
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<ANNOTATION_DOCUMENT FORMAT="3.0"><HEADER TIME_UNITS="milliseconds">'
        f'<MEDIA_DESCRIPTOR MEDIA_URL="file:///C:/x%20y/a.mp4" {media}/></HEADER>'
        f"<TIME_ORDER>{values}{slots}</TIME_ORDER>{tiers}</ANNOTATION_DOCUMENT>"
    )


def tier(text: str, *, name: str = "event", slots: tuple[str, str] = ("ts1", "ts2"), number: int = 1) -> str:
    return (
        f'<TIER TIER_ID="{name}" PARTICIPANT="ann"><ANNOTATION><ALIGNABLE_ANNOTATION ANNOTATION_ID="a{number}" '
        f'TIME_SLOT_REF1="{slots[0]}" TIME_SLOT_REF2="{slots[1]}"><ANNOTATION_VALUE>{text}</ANNOTATION_VALUE>'
        "</ALIGNABLE_ANNOTATION></ANNOTATION></TIER>"
    )


REFERRING = (
    '<TIER TIER_ID="side" PARENT_REF="event"><ANNOTATION><REF_ANNOTATION ANNOTATION_ID="r1" ANNOTATION_REF="{}">'
    "<ANNOTATION_VALUE>left</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION></TIER>"
)


def test_elan_files_are_read(convert: Convert, tmp_path: Path) -> None:
    assert convert("x.eaf", eaf(tier("fall"))) == FALL
    assert convert("x.eaf", eaf(tier(""))) == [("a.mp4", "0.5", "1.25", "event")]
    assert convert("x.eaf", eaf(tier("fall")), "--label", "tier,text") == [("a.mp4", "0.5", "1.25", "event fall")]
    assert convert("x.eaf", eaf(tier("fall"), media="")) == FALL
    assert convert("x.eaf", eaf("")) == [("a.mp4", "", "", "")]
    sound = 'RELATIVE_MEDIA_URL="./s.wav" MIME_TYPE="audio/x-wav" EXTRACTED_FROM="file:///C:/clips/a.mp4"'
    assert convert("x.eaf", eaf(tier("fall"), media=sound)) == FALL
    moved = 'RELATIVE_MEDIA_URL="a.mp4" MIME_TYPE="video/mp4" TIME_ORIGIN="1000"'
    assert convert("x.eaf", eaf(tier("fall"), media=moved)) == [("a.mp4", "1.5", "2.25", "fall")]
    both = eaf(tier("fall") + REFERRING.format("a1"))
    assert convert("x.eaf", both, "--where", "tier=side") == [("a.mp4", "0.5", "1.25", "left")]
    assert convert("x.eaf", both) == [*FALL, ("a.mp4", "0.5", "1.25", "left")]
    assert "1 intervals overlap others" in said(convert)


def test_elan_times_that_are_not_there(convert: Convert) -> None:
    slots = '<TIME_SLOT TIME_SLOT_ID="ts3"/><TIME_SLOT TIME_SLOT_ID="ts4" TIME_VALUE="2250"/>'
    text = eaf(tier("fall") + tier("run", slots=("ts3", "ts4"), number=2), slots)
    assert convert("x.eaf", text) == [*FALL, ("a.mp4", "1.75", "2.25", "run")]
    assert "1 points in time" in said(convert)
    lost = eaf(tier("fall") + tier("run", slots=("ts8", "ts9"), number=2) + REFERRING.format("r1"))
    assert convert("x.eaf", lost, code=1) == FALL
    assert "annotation a2 of tier 'event' has no times" in said(convert)
    assert "annotation r1 of tier 'side' has no times" in said(convert)


def test_elan_annotations_that_subdivide_another_share_its_time(convert: Convert) -> None:
    def referring(number: int, parent: str, text: str, before: str = "") -> str:
        previous = f' PREVIOUS_ANNOTATION="{before}"' if before else ""
        return (
            f'<ANNOTATION><REF_ANNOTATION ANNOTATION_ID="r{number}" ANNOTATION_REF="{parent}"{previous}>'
            f"<ANNOTATION_VALUE>{text}</ANNOTATION_VALUE></REF_ANNOTATION></ANNOTATION>"
        )

    parts = referring(1, "a1", "slip") + referring(2, "a1", "drop", "r1") + referring(3, "a1", "rest", "r2")
    child = f'<TIER TIER_ID="phase" PARENT_REF="event">{parts}</TIER>'
    grandchild = f'<TIER TIER_ID="note" PARENT_REF="phase">{referring(4, "r2", "hard")}</TIER>'
    assert convert("x.eaf", eaf(tier("fall") + child + grandchild)) == [
        ("a.mp4", "0.5", "0.75", "slip"),
        *FALL,
        ("a.mp4", "0.75", "1", "drop"),
        ("a.mp4", "0.75", "1", "hard"),
        ("a.mp4", "1", "1.25", "rest"),
    ]
    circle = referring(5, "r6", "round") + referring(6, "r5", "round", "r6")
    circle = f'<TIER TIER_ID="circle" PARENT_REF="event">{circle}</TIER>'
    assert convert("x.eaf", eaf(tier("fall") + circle), code=1) == FALL


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('<!DOCTYPE x [<!ENTITY a "b">]><ANNOTATION_DOCUMENT/>', "document type"),
        ('<!DOCTYPE x SYSTEM "file:///etc/passwd"><ANNOTATION_DOCUMENT/>', "document type"),
        ("<a>" * 200, "more than 100 deep"),
        ("<a><b></a>", "mismatched tag"),
        ("<html/>", "file of ELAN"),
        (eaf("").replace('"milliseconds"', '"NTSC-frames"'), "times in 'NTSC-frames'"),
    ],
)
def test_hostile_and_strange_xml_is_refused(convert: Convert, text: str, message: str) -> None:
    assert message in str(convert("x.eaf", text, code=2))


def test_elan_files_of_the_first_versions_name_their_video_in_the_header(convert: Convert) -> None:
    text = re.sub("<MEDIA_DESCRIPTOR[^>]*>", "", eaf(tier("fall")))
    for name in ("a.mp4", "file:///C:/my%20clips/a.mp4"):
        assert (
            convert("x.eaf", text.replace("<HEADER ", f'<HEADER MEDIA_FILE="{name}" ').replace('MEDIA_FILE="" ', ""))
            == FALL
        )


def test_a_folder_of_elan_files_is_one_list(kinescan: Any, three_seconds: Path, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.eaf").write_text(eaf(tier("fall")).replace("a.mp4", f"{name}.mp4"))
    (tmp_path / "remarks.txt").write_text("nothing\n")
    output = three_seconds / "labels.csv"
    result = kinescan("data", "convert", str(tmp_path), str(output), "--videos", str(three_seconds), "--json")
    assert result.exit_code == 0
    assert output.read_text() == "path,start,end,label\na.mp4,0.5,1.25,fall\nb.mp4,0.5,1.25,fall\n"
    assert json.loads(result.stdout)["labels"] == {"fall": 2}
    result = kinescan("data", "convert", str(tmp_path), str(output), "--videos", str(three_seconds))
    assert (result.exit_code, "--overwrite" in result.stderr) == (2, True)
    (tmp_path / "c.xml").write_text("<annotations/>")
    result = kinescan("data", "convert", str(tmp_path), str(three_seconds / "other.csv"))
    assert "several" in result.stderr


FORMS = ("hh:mm:ss.ms", "ss.msec")
TIMES = ("00:00:00.500", "0.5", "00:00:01.250", "1.25", "00:00:00.750", "0.75")


@pytest.mark.parametrize(
    "text",
    [
        "\t".join(("event", "", *TIMES, "fall")),
        "\t".join((*TIMES, "fall")),
        "\t".join(("event", "ann", "0.5", "1.25", "fall")),
        "\t".join(("event", "", "500", "1250", "750", "fall")),
        "Tier\tParticipant\t"
        + "\t".join(f"{what} - {form}" for what in ("Begin Time", "End Time", "Duration") for form in FORMS)
        + "\tText\n"
        + "\t".join(("event", "", *TIMES, "fall")),
        "Begin Time - msec\tEnd Time - msec\tevent\tother\n500\t1250\tfall\t\n",
        '"#file:///C:/clips/a.mp4 -- offset: 0"\n' + "\t".join(("event", "", *TIMES, "fall")),
        "Temps de départ - ss.msec\ttemps de fin - ss.msec\tDurée - ss.msec\tevent\n0.5\t1.25\t0.75\tfall\n",
        "Begin Time - hh:mm:ss.ms,End Time - hh:mm:ss.ms,event\n00:00:00.500,00:00:01.250,fall\n",
    ],
)
def test_elan_tables_are_read(convert: Convert, text: str) -> None:
    assert convert("a.txt", text + "\n") == FALL


def test_elan_tables_name_their_files(convert: Convert) -> None:
    text = (
        "Begin Time - ss.msec\tEnd Time - ss.msec\tevent\tFile Path\n0.5\t1.25\tfall\t/x/a.eaf\n0\tsoon\tx\t/x/b.eaf\n"
    )
    assert convert("x.txt", text, code=1) == FALL
    assert "line 3: 'soon'" in said(convert)


# CVAT


def cvat(*tracks: str, size: int = 60, more: str = "") -> str:
    return (
        '<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version><meta><task><id>5</id>'
        f"<name>my task</name><size>{size}</size><mode>interpolation</mode>{more}<source>a.mp4</source></task></meta>"
        f"{''.join(tracks)}</annotations>"
    )


def track(*boxes: tuple[int, int] | tuple[int, int, str], label: str = "fall") -> str:
    shapes = [
        f'<box frame="{frame}" outside="{outside}" occluded="0" keyframe="1" xtl="1" ytl="1" xbr="9" ybr="9">'
        f'{"".join(f"""<attribute name="what">{value}</attribute>""" for value in values)}</box>'
        for frame, outside, *values in boxes
    ]
    return f'<track id="0" label="{label}" source="manual">{"".join(shapes)}</track>'


def test_cvat_tracks_are_there_until_they_are_outside(convert: Convert, tmp_path: Path) -> None:
    assert convert("x.xml", cvat(track((10, 0), (25, 1)))) == FALL
    assert convert("x.xml", cvat(track(*((frame, 0) for frame in range(10, 25)), (25, 1)))) == FALL
    assert convert("x.xml", cvat(track(*((frame, 0) for frame in range(10, 25))))) == FALL
    again = cvat(track((10, 0), (25, 1), (40, 0)))
    assert convert("x.xml", again) == [*FALL, ("a.mp4", "2", "3", "fall")]
    assert convert("x.xml", again, "--fps", "40") == [("a.mp4", "0.25", "0.625", "fall"), ("a.mp4", "1", "1.5", "fall")]
    assert convert("x.xml", cvat(track((10, 0), (20, 0)), more="<stop_frame>24</stop_frame>")) == FALL
    assert convert("x.xml", cvat()) == [("a.mp4", "", "", "")]
    with zipfile.ZipFile(tmp_path / "y.zip", "w") as archive:
        archive.writestr("annotations.xml", cvat(track((10, 0), (25, 1))))
    assert convert("x.zip", (tmp_path / "y.zip").read_bytes()) == FALL


def test_cvat_attributes_are_labels_on_demand(convert: Convert) -> None:
    text = cvat(track((5, 0, "__undefined__"), (10, 0, "fall"), (25, 0, "lie"), (40, 1, "lie"), label="person"))
    expected = [*FALL, ("a.mp4", "1.25", "2", "lie")]
    assert convert("x.xml", text, "--label", "attribute:what") == expected
    assert convert("x.xml", text) == [("a.mp4", "0.25", "2", "person")]
    assert "--label attribute:what" in said(convert)
    ticked = cvat(track((5, 0, "false"), (10, 0, "true"), (25, 0, "false"), (60, 1, "false")))
    assert convert("x.xml", ticked, "--label", "attribute:what") == [("a.mp4", "0.5", "1.25", "what")]
    assert "no attribute 'why'. Attributes: what" in convert("x.xml", text, "--label", "attribute:why", code=2)


STEP = "<frame_filter>step=5</frame_filter>"


def test_cvat_tags_of_frames_are_stretches(convert: Convert) -> None:
    def image(frame: int, *labels: str, tag: str = "tag") -> str:
        inside = "".join(f"<{tag} label='{label}'/>" for label in labels)
        return f"<image id='{frame}' name='frame_{frame:06d}'>{inside}</image>"

    tags = [image(frame, *(["fall"] if 10 <= frame < 25 else [])) for frame in range(60)]
    assert convert("x.xml", cvat(*tags)) == FALL
    assert convert("x.xml", cvat(*(image(frame, "fall", tag="box") for frame in range(10, 25)))) == FALL
    assert convert("x.xml", cvat(*(image(frame, "fall") for frame in (10, 15, 20)), more=STEP)) == FALL
    apart = [image(frame, "fall") for frame in (*range(10, 25), *range(40, 60))]
    assert convert("x.xml", cvat(*apart)) == [*FALL, ("a.mp4", "2", "3", "fall")]
    fall = "<box label='x'><attribute name='what'>fall</attribute></box>"
    what = [f"<image id='{frame}' name='frame_{frame:06d}'>{fall}</image>" for frame in range(10, 25)]
    assert convert("x.xml", cvat(*what), "--label", "attribute:what") == FALL


def test_cvat_without_a_clock_or_with_strange_frames(convert: Convert) -> None:
    text = cvat(track((10, 0), (25, 1)))
    assert "give --fps, or --videos FOLDER" in convert("x.xml", text, code=2, found=False)
    assert convert("x.xml", text, "--fps", "20", found=False) == FALL
    assert "such as a.mp4" in said(convert)
    late = cvat(track((10, 0), (25, 1)), track((70, 0), (90, 1)), track((-5, 0)), size=100)
    assert convert("x.xml", late, code=1) == FALL
    assert "frames 70 to 90: a.mp4 has 60" in said(convert)
    assert "the frame '-5'" in said(convert)
    assert convert("x.xml", cvat(track(*((frame, 0) for frame in range(10, 25, 5))), more=STEP)) == FALL
    images = "<annotations><image id='0' name='a.png'><box label='x'/></image></annotations>"
    assert "CVAT for video 1.1" in convert("x.xml", images, code=2)


# VIA

VIA = (
    '# Exported using VGG Image Annotator\n# ATTRIBUTE = {"1":{"aname":"what","options":{"0":"fall","1":"run"}},'
    '"2":{"aname":"remark"}}\n'
    "# CSV_HEADER = metadata_id,file_list,flags,temporal_coordinates,spatial_coordinates,metadata\n"
)


def test_via_segments_are_read(convert: Convert) -> None:
    row = '"1_aB3","[""a.mp4""]",0,"[0.5,1.25]","[]","{""1"":""0""}"\n'
    still = '"1_aB4","[""a.mp4""]",0,"[2.0]","[2,1,1,5,5]","{""1"":""1""}"\n'
    assert convert("x.csv", VIA + row + still) == FALL
    assert "--point" in said(convert)
    text = VIA + row.replace("}", ',""2"":""odd""}') + '"1_aB5","[""a.mp4""]",0,"[0.5",,\n'
    assert convert("x.csv", text, "--label", "attribute:what", code=1) == FALL
    assert "line 5: " in said(convert)
    older = VIA.replace("temporal_coordinates,spatial_coordinates", "temporal_segment_start,temporal_segment_end")
    assert convert("x.csv", older + '"1_aB3","[""a.mp4""]",0,0.5,1.25,"{""1"":""fall""}"\n') == FALL


# frames


def test_lists_of_frames_are_read_by_the_clock_of_the_video(convert: Convert) -> None:
    text = "video;label;start_frame;end_frame\na.mp4;fall;10;24\nb.mp4;;;\n"
    assert convert("x.csv", text) == [*FALL, *NOTHING]
    assert convert("x.csv", text, "--fps", "40") == [("a.mp4", "0.25", "0.625", "fall"), *NOTHING]
    wrong = text + "a.mp4;run;30;20\na.mp4;run;58;61\na.mp4;run;50;90\n;run;1;2\n"
    assert convert("x.csv", wrong, code=1) == [*FALL, ("a.mp4", "2.9", "3", "run"), *NOTHING]
    assert [f"line {number}: " in said(convert) for number in (4, 5, 6, 7)] == [True, False, True, True]
    assert convert("x.csv", text + "lost.mp4;fall;1;2\n", code=1)[: len(FALL)] == FALL
    assert "line 4: lost.mp4" in said(convert)


# all


@pytest.mark.parametrize(
    ("name", "content", "flags", "message"),
    [
        ("x.csv", "path,label\na.mp4,fall\n", (), "label_studio (Label Studio"),
        ("x.xlsx", "PK\x03\x04...", (), "a spreadsheet"),
        ("x.boris", "{}", (), "BORIS"),
        ("x.json", "[1, 2]", (), "elan_table (ELAN"),
        ("x.json", "[", (), "not valid JSON"),
    ],
)
def test_what_cannot_be_understood_is_refused(
    convert: Convert, name: str, content: str, flags: tuple[str, ...], message: str
) -> None:
    assert message in str(convert(name, content, *flags, code=2)).replace("\\\\\\\\", "\\\\")
