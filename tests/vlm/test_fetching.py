"""Chunks that have to be brought to the model: in which order, what is read, and what is left behind."""

import gc
import os
import signal
from pathlib import Path

import pytest
import torch

from kinescan.errors import CheckpointError
from kinescan.vlm import PixelSettings, load_stream, open_stream
from kinescan.vlm.fetching import ChunkFolder, ChunkOnDisk
from kinescan.vlm.store import CacheShape, KeyValueStore

SHAPE = CacheShape(num_layers=2, key_heads=2, head_dim=8, dtype=torch.bfloat16, device=torch.device("cpu"))
QUESTION = [5, 17, 200, 41, 8]
PIXELS = PixelSettings(min_pixels=64, max_pixels=10_000)


class Recorded:
    """A fetcher whose chunks come when they are asked for, and which writes down what happens."""

    def __init__(self, said, name="", corrupt=False):
        self.said, self.name, self.corrupt = said, name, corrupt

    def start(self, chunk):
        self.said.append(f"{self.name}start")
        return chunk

    def finish(self, coming):
        self.said.append(f"{self.name}finish")
        return tuple(part.read() for part in coming) if isinstance(coming, ChunkOnDisk) else coming


def start(model, **options):
    return open_stream(model, **{"pixels": PIXELS, "horizon_frames": 40, "budget": 12, "chunk_tokens": 6, **options})


def test_a_chunk_is_on_its_way_before_the_one_before_it_is_used():
    store = KeyValueStore(SHAPE, storage="offload", chunk_tokens=4)
    store.append(*torch.randn(2, 1, 2, 14, 8, dtype=torch.bfloat16))
    expected = list(store.blocks([0, 2, 3]))
    said = []
    store.fetcher = Recorded(said)
    store.expect([0, 2, 3])
    found = []
    for block in store.blocks([0, 2, 3], then=lambda: said.append("then")):
        said.append("use")
        found.append(block)
    assert said == [
        *("start", "start", "finish", "use"),
        *("start", "finish", "use"),
        *("then", "finish", "use"),
    ]
    for block, other in zip(found, expected, strict=True):
        assert all(torch.equal(*pair) for pair in zip(block, other, strict=True))


def test_what_was_expected_is_not_used_once_the_store_has_grown():
    store = KeyValueStore(SHAPE, storage="offload", chunk_tokens=4)
    store.append(*torch.randn(2, 1, 2, 3, 8, dtype=torch.bfloat16))
    said = []
    store.fetcher = Recorded(said)
    store.expect()
    store.append(*torch.randn(2, 1, 2, 1, 8, dtype=torch.bfloat16))
    assert [block[0].shape[2] for block in store.blocks()] == [4]
    assert said == ["start", "start", "finish"]


def test_the_next_layer_is_on_its_way_while_one_computes(vlm, video):
    with start(vlm("internvl"), storage="offload") as stream:
        stream.push(video(6))
        expected = stream.ask(QUESTION, max_new_tokens=3)
        said = []
        for number, layer in enumerate(stream.cache.layers):
            layer.full_cache.fetcher = Recorded(said, name=f"{number} ")
        found = stream.ask(QUESTION, max_new_tokens=3)
    assert torch.equal(found.logits, expected.logits)
    assert found.token_ids == expected.token_ids
    # of every layer but the first, the first chunk comes before the layer before it has its last one
    for layer in (1, 2):
        last = max(
            index for index, word in enumerate(said[: said.index(f"{layer} finish")]) if word == f"{layer - 1} finish"
        )
        assert said.index(f"{layer} start") < last
    assert said.count("0 start") == said.count("0 finish")


@pytest.mark.parametrize("name", ["internvl", "qwen3_vl"])
def test_a_cache_on_disk_answers_as_one_in_memory(name, vlm, video, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    answers = []
    for storage in ("memory", "disk"):
        with start(vlm(name), storage=storage) as stream:
            for part in video(10).split(2):
                stream.push(part)
            stream.ask(QUESTION, max_new_tokens=2, keep=True)
            stream.save(tmp_path / f"{storage}.state")
            answers.append(stream.ask(QUESTION, max_new_tokens=4))
            if storage == "disk":
                layer = stream.cache.layers[0].full_cache
                files = list(tmp_path.glob("kinescan-cache-*/*"))
                assert len(files) == 3 * (layer.length // 6) > 6
    with load_stream(tmp_path / "disk.state", vlm(name)) as stream:
        answers.append(stream.ask(QUESTION, max_new_tokens=4))
    for answer in answers[1:]:
        assert torch.equal(answer.logits, answers[0].logits)
        assert answer.token_ids == answers[0].token_ids
    del stream, layer
    gc.collect()
    assert not list(tmp_path.glob("kinescan-cache-*/*"))


def test_retrieval_reads_only_the_chunks_that_answer(vlm, video, monkeypatch):
    read = []
    inner = ChunkOnDisk.read
    monkeypatch.setattr(ChunkOnDisk, "read", lambda chunk: read.append(chunk) or inner(chunk))
    model = vlm("internvl")
    with start(model, storage="memory") as whole:
        whole.push(video(20))
        expected = whole.ask(QUESTION, max_new_tokens=1).logits
    for chunks in (3, 100):
        with start(model, storage="disk", retrieved_chunks=chunks) as stream:
            stream.push(video(20))
            read.clear()
            found = stream.ask(QUESTION, max_new_tokens=1).logits
            total = len(stream.cache.layers[0].full_cache.chunks)
            for layer in stream.cache.layers:
                held = [chunk for chunk in layer.full_cache.chunks if isinstance(chunk, ChunkOnDisk)]
                touched = {id(chunk) for chunk in read} & {id(chunk) for chunk in held}
                assert len(touched) <= min(chunks + 2, total)
        assert torch.equal(found, expected) == (chunks == 100)


def test_a_push_that_fails_leaves_a_cache_on_disk_as_it_was(vlm, video, monkeypatch):
    with start(vlm("internvl"), storage="disk") as stream:
        stream.push(video(5))
        expected = stream.ask(QUESTION, max_new_tokens=1).logits
        inner, calls = stream.family.decode, []

        def fails(*args, **options):
            calls.append(1)
            if len(calls) > 3:
                raise RuntimeError("out of memory")
            return inner(*args, **options)

        monkeypatch.setattr(stream.family, "decode", fails)
        with pytest.raises(RuntimeError):
            stream.push(video(8))
        monkeypatch.undo()
        assert torch.equal(stream.ask(QUESTION, max_new_tokens=1).logits, expected)


@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_chunk_that_was_touched_is_an_error(damage, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    chunk = ChunkFolder().hold((torch.randn(1, 2, 4, 8), torch.randn(1, 2, 4, 8)))
    path: Path = next(tmp_path.glob("*/*.bin"))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-5])
    else:
        path.unlink()
    with pytest.raises(CheckpointError):
        chunk.read()


def test_a_full_disk_is_an_error_and_loses_nothing(vlm, video, monkeypatch):
    with start(vlm("internvl"), storage="disk") as stream:
        stream.push(video(2))
        before = stream.stats

        def full(path, *args, **options):
            raise OSError(28, "No space left on device")

        monkeypatch.setattr("pathlib.Path.open", full)
        with pytest.raises(CheckpointError):
            stream.push(video(4))
        monkeypatch.undo()
        assert stream.stats == before
        stream.push(video(4))
        assert stream.stats.num_frames == 6


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("ends", ["close", "forget", "continue"])
def test_a_forked_process_leaves_the_chunks_of_the_other_alone(ends, vlm, video):
    """It answers by itself, with a thread and files of its own; what it removes and writes is not missed here."""
    frames = video(12)
    with start(vlm("internvl"), storage="disk") as stream, start(vlm("internvl")) as kept:
        stream.push(frames[:6])
        expected = stream.ask(QUESTION, max_new_tokens=1).logits
        out, into = os.pipe()
        process = os.fork()
        if process == 0:
            signal.alarm(60)
            said = b"differs"
            try:
                if torch.equal(stream.ask(QUESTION, max_new_tokens=1).logits, expected):
                    said = b"same"
                if ends == "close":
                    stream.close()
                elif ends == "continue":
                    stream.push(frames[:6])
                    stream.ask(QUESTION, max_new_tokens=1)
                else:
                    del stream
                    gc.collect()
            finally:
                os.write(into, said)
                os._exit(0)
        os.close(into)
        stream.push(frames[6:])
        assert os.read(out, 10) == b"same"
        os.close(out)
        os.waitpid(process, 0)
        kept.push(frames)
        assert torch.equal(stream.ask(QUESTION, max_new_tokens=1).logits, kept.ask(QUESTION, max_new_tokens=1).logits)
