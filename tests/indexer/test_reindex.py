"""Reindexing step by step: the promise of each state, kills, cancellations, concurrent writes."""

import threading
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from gate import serving
from resources import eventually, hash_vector, make_indexer
from rows import Row
from sealed import append, contents, gone, make_collection, segments, up, version
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from cluster.wiring import build_indexer
from indexer import reindex_copy, reindex_jobs
from indexer.reindex import Reindex
from indexer.run import Indexer
from tenants import provisioning
from tenants.entities import EmbeddingModel, Generation, Group, IngestLane, Job
from tenants.registry import Registry
from vicinage.errors import Conflict, NotFound, Overloaded, Refused
from vicinage.log import Record
from vicinage.wire import vectors_of

TOPIC = "vicinage.docs.acme"


class Platform:
    """A collection with sealed rows and rows in the log, and an indexer on the test's thread."""

    def __init__(self, base) -> None:
        self.base = base
        self.live = make_collection(base, shards=2)
        self.indexer: Indexer = make_indexer(base)
        self.indexer._hold_leases()

    def write(self, generation: Generation, *rows: Row) -> None:
        append(self.base, generation, *rows)

    def seal(self) -> None:
        self.indexer._hold_leases()
        while self.indexer._read(0):
            pass
        for pending in list(self.indexer._sealer.pending.values()):
            self.indexer._seal(pending)

    def request(self, *, index: str = "flat", model: str | None = None, shards: int = 1) -> Job:
        return reindex_jobs.start(
            self.base.registry,
            self.base.jobs,
            "acme",
            "docs",
            index=index,
            model=model,
            shards=shards,
            actor="test",
        )

    def advance(self, times: int = 1) -> Job:
        for _ in range(times):
            [job] = self.base.jobs.list(open_only=True) or [None]
            if job is None:
                break
            self.indexer._maintenance._reindex.advance(job)
        self.base.registry.refresh()
        return self.base.jobs.list()[-1]

    def generations(self) -> list[tuple[int, str]]:
        self.base.registry.refresh()
        return [
            (g.number, g.state) for g in self.base.registry.collection("acme", "docs").generations
        ]

    def generation(self, number: int) -> Generation:
        self.base.registry.refresh()
        return self.base.registry.collection("acme", "docs").generation(number)


@pytest.fixture
def platform(base) -> Platform:
    made = Platform(base)
    made.write(made.live, *[up(f"d{i}", i, 2) for i in range(10)])
    made.seal()
    made.write(
        made.live, *[up(f"d{i}", i, 1) for i in range(10, 15)], gone("d0", 20), up("d1", 21, 3)
    )
    return made


def test_a_job_goes_from_pending_to_done_and_the_new_generation_holds_the_same(
    platform: Platform,
) -> None:
    before = contents(platform.base, platform.live)
    assert platform.request(shards=3).state == "pending"
    assert platform.advance().state == "waiting"
    assert platform.generations() == [(1, "live"), (2, "building")]
    assert platform.advance().state == "building"
    assert platform.advance().state == "ready"
    assert platform.generations() == [(1, "live"), (2, "ready")]
    done = platform.advance()
    assert done.state == "done"
    assert done.done == done.total == sum(n for _, n in before.values())
    assert platform.generations() == [(2, "live")]
    new = platform.generation(2)
    assert len(new.slots) == 3
    assert contents(platform.base, new) == before
    assert "d0" not in before
    assert before["d1"] == (version(21), 3)


def test_a_job_waits_until_ingest_has_written_the_records_before_the_new_generation(
    platform: Platform,
) -> None:
    log = platform.base.log
    log.append(TOPIC, 0, [Record(b"{}") for _ in range(5)])
    platform.request()
    platform.advance()
    log.append(TOPIC, 0, [Record(b"{}")])  # beyond the barrier: no wait for it
    assert platform.advance().state == "waiting"
    log.commit(Group.INGEST, {(TOPIC, 0): 4})
    assert platform.advance().state == "waiting", (
        "ingest may still write the last record to the old generation only"
    )
    log.commit(Group.INGEST, {(TOPIC, 0): 5})
    assert platform.advance().state == "building"


def test_a_job_copies_only_once_lanes_of_ingest_are_beyond_the_barrier(platform: Platform) -> None:
    log, lanes = platform.base.log, platform.base.registry.lanes
    log.append(TOPIC, 0, [Record(b"{}") for _ in range(5)])
    log.commit(Group.INGEST, {(TOPIC, 0): 5})
    platform.request()
    [lane] = lanes.open([IngestLane("acme", "docs", platform.live.number, 0, 3, "m")])
    assert platform.advance(2).state == "waiting", "the live generation lacks rows of its lane"
    lanes.move(lane, position=5, state="behind")
    assert platform.advance().state == "building"


def test_a_job_cuts_over_only_once_the_new_generation_has_all_rows_of_the_live_one(
    platform: Platform,
) -> None:
    log, lanes = platform.base.log, platform.base.registry.lanes
    platform.request()
    platform.advance(2)
    log.append(TOPIC, 0, [Record(b"{}") for _ in range(5)])
    log.commit(Group.INGEST, {(TOPIC, 0): 5})
    [lane] = lanes.open([IngestLane("acme", "docs", 2, 0, 3, "m")])
    assert platform.advance(2).state == "ready"
    assert platform.advance().state == "ready", (
        "a search of the new generation would miss rows of its lane"
    )
    lanes.move(lane, position=5, state="behind")
    platform.advance()
    assert platform.base.jobs.list()[-1].state == "done"


def test_rows_that_the_new_generation_received_win_over_copied_ones(platform: Platform) -> None:
    platform.request()
    platform.advance(2)
    new = platform.generation(2)
    for generation in (platform.live, new):  # as ingest writes: to every generation
        platform.write(generation, gone("d2", 30), up("d3", 31, 4), up("fresh", 32))
    # its deletion and its newer version are in a segment before the older rows are copied
    platform.seal()
    assert segments(platform.base, new)
    platform.advance(2)
    found = contents(platform.base, platform.generation(2))
    assert "d2" not in found
    assert found["d3"] == (version(31), 4)
    assert "fresh" in found
    assert found == contents(platform.base, platform.live)


def test_a_deletion_that_waits_in_the_log_wins_over_copied_rows(platform: Platform) -> None:
    platform.request()
    platform.advance(2)
    new = platform.generation(2)
    platform.write(new, gone("d2", 30), up("d3", 31, 4))  # not sealed
    platform.advance(2)
    found = contents(platform.base, new)
    assert "d2" not in found
    assert found["d3"] == (version(31), 4)
    platform.seal()
    assert contents(platform.base, new) == found


def test_a_compaction_of_the_unfinished_generation_forgets_no_deletion(platform: Platform) -> None:
    from indexer.compact import compact

    platform.base.log.append(TOPIC, 0, [Record(b"{}") for _ in range(50)])
    platform.base.log.commit(Group.INGEST, {(TOPIC, 0): 50})
    platform.request()
    platform.advance(2)
    new = platform.generation(2)
    platform.write(new, gone("d2", 30))
    platform.seal()
    platform.write(new, up("fresh", 32))
    platform.seal()
    [shard] = new.shards()
    builder = replace(
        platform.indexer._builder,
        settings=platform.base.settings.indexer.model_copy(update={"segments_max": 1}),
    )
    manifest = builder.current(shard, new)
    assert len(manifest.segments) == 2
    compact(
        builder,
        manifest,
        new,
        platform.indexer.lease(shard.slot),
        forgettable=platform.indexer._maintenance.forgettable(shard),
    )
    assert segments(platform.base, new) == [(1, 1)]
    platform.advance(2)
    assert "d2" not in contents(platform.base, platform.generation(2))


def test_an_interrupted_build_continues_after_its_last_part(
    platform: Platform, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reindex_copy, "PART_PASSAGES", 3)
    before = contents(platform.base, platform.live)
    stopping = threading.Event()
    platform.request()
    platform.advance(2)
    stopping.set()  # a regular stop: after the current part
    stopped = _reindex(platform, stopping)
    for expected in (1, 2):
        stopped.advance(platform.base.jobs.list(open_only=True)[0])
        [job] = platform.base.jobs.list()
        assert job.state == "building"
        assert len(segments(platform.base, platform.generation(2))) == expected, (
            "one part each time, none twice"
        )
    done_so_far = job.done
    assert 0 < done_so_far < job.total
    done = platform.advance(2)
    assert (done.state, done.done) == ("done", sum(n for _, n in before.values()))
    assert contents(platform.base, platform.generation(2)) == before


def _reindex(platform: Platform, stopping: threading.Event, embed=None) -> Reindex:
    i = platform.indexer
    return Reindex(
        platform.base.log, i._registry, platform.base.jobs, i._builder, 8, embed, i.lease, stopping
    )


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_job_canceled_at_any_step_leaves_the_old_generation_unchanged(
    platform: Platform, steps: int
) -> None:
    before = contents(platform.base, platform.live)
    job = platform.request()
    platform.advance(steps)
    reindex_jobs.cancel(platform.base.registry, platform.base.jobs, job.id, actor="test")
    assert platform.generations() == [(1, "live")]
    assert platform.advance(3).state == "canceled"
    assert platform.generations() == [(1, "live")]
    assert contents(platform.base, platform.live) == before
    platform.request()  # another may start
    assert platform.advance(4).state == "done"
    assert contents(platform.base, platform.generation(platform.generations()[-1][0])) == before


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_job_canceled_during_a_step_leaves_no_generation(platform: Platform, steps: int) -> None:
    """The worker holds the job as it was before the cancellation."""
    job = platform.request()
    platform.advance(steps)
    [held] = platform.base.jobs.list()
    reindex_jobs.cancel(platform.base.registry, platform.base.jobs, job.id, actor="test")
    platform.indexer._maintenance._reindex.advance(held)
    assert platform.base.jobs.get(job.id).state == "canceled"
    assert platform.generations() == [(1, "live")]


@pytest.mark.parametrize("first", ["failed", "gone"])
def test_a_generation_that_another_process_abandons_at_the_same_time_raises_nothing(
    platform: Platform, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    """The gateway cancels the job while the indexer is between its read and its change."""
    job = platform.request()
    platform.advance(2)
    [held] = platform.base.jobs.list()
    registry = platform.indexer._registry
    real = registry.set_generation_state

    def second(*of: Any, **more: Any) -> None:
        if first == "failed":
            real(*of, **more)
        else:
            platform.base.registry.delete_collection("acme", "docs", actor="test")
            make_collection(platform.base)
        real(*of, **more)

    platform.base.jobs.cancel(held, actor="test")
    monkeypatch.setattr(registry, "set_generation_state", second)
    platform.indexer._maintenance._reindex.advance(held)
    assert platform.base.jobs.get(job.id).state == "canceled"
    assert platform.generations() == [
        (platform.base.registry.collection("acme", "docs").live, "live")
    ]


@pytest.mark.parametrize("steps", [0, 1, 2, 3])
def test_a_collection_created_again_at_any_step_ends_the_job_and_another_may_start(
    platform: Platform, steps: int
) -> None:
    job = platform.request()
    held = platform.advance(steps)
    platform.base.registry.delete_collection("acme", "docs", actor="test")
    ended = platform.base.jobs.get(job.id)
    assert (ended.state, ended.error) == ("failed", "the collection was deleted")
    again = make_collection(platform.base)
    if steps < 3:
        # a worker that holds the job as it was
        platform.indexer._maintenance._reindex.advance(held)
    assert platform.generations() == [(again.number, "live")], (
        "the earlier job adds nothing to the new collection"
    )
    second = platform.request()
    assert platform.advance(4).id == second.id
    assert platform.base.jobs.get(second.id).state == "done"
    assert [state for _, state in platform.generations()] == ["live"]


def test_a_job_whose_collection_was_replaced_ends(platform: Platform) -> None:
    """Jobs of an earlier version, or restored from a backup, may be in that state."""
    platform.request()
    ready = platform.advance(3)
    platform.base.registry.delete_collection("acme", "docs", actor="test")
    make_collection(platform.base)
    reopened = platform.base.jobs.advance(
        platform.base.jobs.get(ready.id), state="ready", error=None
    )
    platform.indexer._maintenance._reindex.advance(reopened)
    ended = platform.base.jobs.get(ready.id)
    assert ended.state == "failed"
    assert "created again" in (ended.error or "")


def test_a_job_waits_for_no_positions_of_an_earlier_topic(platform: Platform) -> None:
    log = platform.base.log
    log.append(TOPIC, 0, [Record(b"{}") for _ in range(5)])
    platform.request()
    platform.advance()
    log.delete_topic(TOPIC)
    log.ensure_topic(TOPIC)
    log.append(TOPIC, 0, [Record(b"{}")])
    assert platform.advance().state == "waiting"
    log.commit(Group.INGEST, {(TOPIC, 0): 1})
    assert platform.advance(4).state == "done"


def test_a_finished_job_cannot_be_canceled_and_a_second_cannot_start_meanwhile(
    platform: Platform,
) -> None:
    job = platform.request()
    with pytest.raises(Conflict):
        platform.request()
    platform.advance(4)
    with pytest.raises(Conflict):
        reindex_jobs.cancel(platform.base.registry, platform.base.jobs, job.id, actor="test")
    assert platform.generations() == [(2, "live")]


def test_a_live_or_retired_generation_never_changes_its_state(platform: Platform) -> None:
    platform.request()
    platform.advance(4)
    for number in (1, 2):
        with pytest.raises(Conflict):
            platform.base.registry.set_generation_state(
                "acme", "docs", number, "failed", actor="test"
            )
    assert platform.generations() == [(2, "live")]


def test_a_deleted_collection_ends_the_job_with_the_reason(platform: Platform) -> None:
    platform.request()
    platform.advance(2)
    platform.base.registry.delete_collection("acme", "docs", actor="test")
    [job] = platform.base.jobs.list()
    assert (job.state, job.error) == ("failed", "the collection was deleted"), (
        "at once, with or without an indexer"
    )


def test_an_invalid_request_is_refused_at_once(platform: Platform) -> None:
    with pytest.raises(Refused, match="index"):
        platform.request(index="annoy")
    with pytest.raises(Refused, match="sends vectors"):
        platform.request(model="all-minilm-l6-v2")
    with pytest.raises(NotFound):
        platform.request(model="no-such-model")
    with pytest.raises(NotFound):
        reindex_jobs.start(
            platform.base.registry,
            platform.base.jobs,
            "acme",
            "none",
            index="",
            model=None,
            shards=0,
            actor="test",
        )
    assert platform.base.jobs.list() == ()


def test_more_shards_than_slots_end_the_job_with_the_limit(platform: Platform) -> None:
    platform.request(shards=9)
    job = platform.advance()
    assert job.state == "failed"
    assert "8" in job.error
    assert platform.generations() == [(1, "live")]


class WithModel(Platform):
    """A collection whose texts a registered model embeds."""

    def __init__(self, base) -> None:
        super().__init__(base)
        base.registry.register_model(
            EmbeddingModel("old", "openai", "http://127.0.0.1:9", 4, 100), actor="test"
        )
        base.registry.register_model(
            EmbeddingModel("new", "openai", "http://127.0.0.1:9", 8, 100), actor="test"
        )
        base.registry.delete_collection("acme", "docs", actor="test")
        made = provisioning.create_collection(
            base.registry, base.log, "acme", "docs", model="old", slots_total=8, actor="test"
        )
        self.live = made.generation()
        self.indexer._registry.refresh()


def test_another_model_embeds_every_passage_again(base) -> None:
    platform = WithModel(base)
    platform.write(platform.live, *[up(f"d{i}", i + 1, 2) for i in range(700)])
    platform.seal()
    calls = []

    def embed(model: str, texts, tenant: str):
        calls.append((model, len(texts), tenant))
        if len(calls) == 2:
            raise Overloaded("the queue is full", retry_after_s=0.001)
        return np.stack([hash_vector(t, 8) for t in texts])

    worker = _reindex(platform, threading.Event(), embed)
    platform.request(model="new")
    for _ in range(4):
        worker.advance(platform.base.jobs.list()[-1])
    assert platform.base.jobs.list()[-1].state == "done"
    assert calls == [
        ("new", 512, "acme"),
        ("new", 512, "acme"),
        ("new", 512, "acme"),
        ("new", 376, "acme"),
    ]
    number, _ = platform.generations()[-1]
    new = platform.generation(number)
    assert (new.model, new.dimension) == ("new", 8)
    found = contents(base, new)
    assert len(found) == 700
    assert set(found.values()) == {(v, 2) for v, _ in found.values()}
    from indexer.index.segment import load

    [shard] = new.shards()
    [ref] = base.manifests.of(shard, start=0).segments
    segment = load(ref, base.store, platform.indexer._builder.backend, new.metric)
    texts = segment.rows.column("text").to_pylist()
    assert np.allclose(vectors_of(segment.rows), np.stack([hash_vector(t, 8) for t in texts]))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (lambda n: np.ones((n, 7), np.float32), "answered 10 x 7 numbers to 10 texts of 8"),
        (lambda n: np.ones((n - 1, 8), np.float32), "answered 9 x 8 numbers to 10 texts of 8"),
        (lambda n: np.ones(n, np.float32), "answered 10 numbers to 10 texts of 8"),
        (lambda n: np.full((n, 8), np.nan, np.float32), "not finite"),
    ],
)
def test_a_model_with_invalid_answers_ends_its_job_with_the_reason(base, answer, reason) -> None:
    platform = WithModel(base)
    platform.write(platform.live, *[up(f"d{i}", i + 1) for i in range(10)])
    platform.seal()
    worker = _reindex(platform, threading.Event(), lambda _model, texts, tenant: answer(len(texts)))
    platform.request(model="new")
    for _ in range(3):
        worker.advance(base.jobs.list()[-1])
    [job] = base.jobs.list()
    assert job.state == "failed" and reason in job.error
    assert [state for _, state in platform.generations()] == ["live"]


def test_a_model_that_hangs_blocks_only_its_own_jobs(base) -> None:
    platform = WithModel(base)
    platform.write(platform.live, *[up(f"d{i}", i + 1) for i in range(10)])
    platform.seal()
    other = provisioning.create_collection(
        base.registry, base.log, "acme", "other", dimension=4, slots_total=8, actor="test"
    ).generation()
    called, go_on = threading.Event(), threading.Event()

    def hangs(model: str, texts, tenant: str):
        called.set()
        assert go_on.wait(60)
        return np.stack([hash_vector(t, 8) for t in texts])

    maintenance = platform.indexer._maintenance
    maintenance._reindex = _reindex(platform, threading.Event(), hangs)
    job = platform.request(model="new")
    eventually(lambda: platform.indexer.step() is not None and called.is_set())
    copied = reindex_jobs.start(
        base.registry, base.jobs, "acme", "other", index="flat", model=None, shards=1, actor="test"
    )
    maintenance.compact_soon(other.shards())
    eventually(
        lambda: platform.indexer.step() is not None and base.jobs.get(copied.id).state == "done"
    )
    eventually(lambda: platform.indexer.step() is not None and not maintenance._to_compact)
    assert base.jobs.get(job.id).state == "building"
    go_on.set()
    eventually(
        lambda: platform.indexer.step() is not None and base.jobs.get(job.id).state == "done"
    )
    maintenance.stop()


def test_a_job_canceled_while_it_waits_for_a_busy_model_embeds_no_more(base) -> None:
    platform = WithModel(base)
    platform.write(platform.live, *[up(f"d{i}", i + 1) for i in range(10)])
    platform.seal()
    calls = []

    def embed(model: str, texts, tenant: str):
        calls.append(len(texts))
        if len(calls) == 2:
            reindex_jobs.cancel(base.registry, base.jobs, job.id, actor="test")
        raise Overloaded("the queue is full", retry_after_s=0.001)

    worker = _reindex(platform, threading.Event(), embed)
    job = platform.request(model="new")
    for _ in range(3):
        worker.advance(base.jobs.get(job.id))
    assert len(calls) == 2
    assert base.jobs.get(job.id).state == "canceled"
    assert [state for _, state in platform.generations()] == ["live"]


def test_passages_without_text_end_a_change_of_model_with_the_reason(base) -> None:
    from rows import message
    from sealed import DIMENSION

    from tenants.provisioning import VECTORS_TOPIC
    from vicinage.wire import encode_rows, rows_key

    platform = WithModel(base)
    batch = message([up("a", 1)], DIMENSION)
    column = batch.schema.get_field_index("text")
    bare = batch.set_column(column, batch.schema.field(column), pa.nulls(1, pa.utf8()))
    g = platform.live
    value = encode_rows(bare, tenant="acme", collection="docs", generation=g.number)
    base.log.append(VECTORS_TOPIC, g.slots[0], [Record(value, rows_key("acme", "docs", g.number))])
    platform.request(model="new")
    job = platform.advance(4)
    assert job.state == "failed"
    assert "no text" in job.error
    assert platform.generations() == [(g.number, "live")]


def test_an_empty_collection_is_reindexed(base) -> None:
    platform = Platform(base)
    platform.request(index="hnsw")
    job = platform.advance(4)
    assert (job.state, job.done) == ("done", 0)
    assert platform.generations() == [(2, "live")]
    assert platform.generation(2).index == "hnsw"


def test_a_model_registered_after_the_indexer_started_is_found(base) -> None:
    async def embeddings(request: Request) -> JSONResponse:
        texts = (await request.json())["input"]
        return JSONResponse(
            {
                "data": [
                    {"index": i, "embedding": hash_vector(t, 8).tolist()}
                    for i, t in enumerate(texts)
                ]
            }
        )

    base.registry.create_tenant("acme", actor="test")
    base.registry.register_model(
        EmbeddingModel("old", "openai", "http://127.0.0.1:9", 4, 100), actor="test"
    )
    made = provisioning.create_collection(
        base.registry, base.log, "acme", "docs", model="old", slots_total=8, actor="test"
    )
    append(base, made.generation(), up("a", 1))
    indexer = build_indexer(base, embedder_key=None)
    elsewhere = Registry(base.engine, base.clock)  # of the gateway's process
    with serving(Starlette(routes=[Route("/v1/embeddings", embeddings, methods=["POST"])])) as url:
        elsewhere.register_model(
            EmbeddingModel("late", "openai", f"{url}/v1", 8, 100), actor="test"
        )
        reindex_jobs.start(
            elsewhere, base.jobs, "acme", "docs", index="flat", model="late", shards=1, actor="test"
        )
        indexer._hold_leases()
        for _ in range(4):
            indexer._maintenance._reindex.advance(base.jobs.list()[-1])
    [job] = base.jobs.list()
    assert (job.state, job.error, job.done) == ("done", None, 1)
