"""`vicinage doctor`: checks the platform's dependencies one at a time, each with a remedy."""

import platform
import resource
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from vicinage.errors import VicinageError
from vicinage.settings import Settings

if TYPE_CHECKING:
    from sqlalchemy import Engine

DISK_FREE_MIN: Final = 2 << 30
FILES_MIN: Final = 1_024
NOT_YET: Final = "absent: `vicinage up` creates it"
Row = dict[str, Any]


HALTS: Final = "docs/operations/runbooks/halted-partition.md"


class Warned(Exception):
    """A check that found a risk, but no failure."""


class Failed(Exception):
    """A check that failed, with a remedy that depends on its finding."""

    def __init__(self, detail: str, remedy: str) -> None:
        super().__init__(detail)
        self.remedy = remedy


def examine(settings: Settings) -> list[Row]:
    """Returns one row per check: check, ok, detail, next."""
    s = settings.resolved()
    checks: list[tuple[str, Callable[[], str], str]] = [
        ("python", _python, "install Python 3.11 to 3.13"),
        (
            "faiss",
            lambda: _faiss(s),
            (
                "install the extra cpu (or, for devices cuda, gpu) beside those in use:"
                " docs/how-to/install.md"
            ),
        ),
        (
            "model",
            lambda: _model(s),
            "install the extra cpu or torch beside those in use: docs/how-to/install.md",
        ),
        ("disk", lambda: _disk(s), "free some space, or move --data to a larger disk"),
        ("files", _files, "raise the limit of open files: ulimit -n 65536"),
        ("catalog", lambda: _catalog(s), "check catalog_url, and that the database is up"),
        (
            "audit",
            lambda: _audit(s),
            "copy the key's file from the node that has it, or `vicinage audit new-key`",
        ),
        (
            "models",
            lambda: _models(s),
            "install its package or put its files there; its entry never changes",
        ),
        (
            "reranker",
            lambda: _reranker(s),
            "check rerank.model or rerank.url: until then nothing is reranked",
        ),
        ("log", lambda: _log(s), "check log_url, and that the broker is up"),
        (
            "topics",
            lambda: _topics(s),
            "set the named settings with kafka-configs.sh --alter --entity-type topics",
        ),
        ("ingest", lambda: _ingest(s), HALTS),
        (
            "access",
            lambda: _access(s),
            (
                "docs/how-to/secure-kafka.md states what any client of the brokers can do, and how"
                " to prevent it"
            ),
        ),
        ("store", lambda: _store(s), "check store_url, and the permission to write there"),
        ("segments", lambda: _segments(s), "docs/operations/runbooks/corrupt-segment.md"),
        (
            "port",
            lambda: _port(s),
            "stop the program that listens there, or choose another port with --port",
        ),
    ]
    return [_row(name, check, remedy) for name, check, remedy in checks]


def examine_url(url: str) -> list[Row]:
    """Returns one row for the platform at `url`, and one for each part that it reports.

    Needs no key.
    """
    import httpx2

    try:
        answer = httpx2.get(f"{url.rstrip('/')}/readyz", timeout=10, trust_env=False).json()
        parts = dict(answer["parts"])
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError, KeyError, TypeError) as error:
        reason = str(error) or type(error).__name__
        remedy = "check the URL, and `vicinage status` on its machine"
        return [
            {
                "check": "platform",
                "ok": False,
                "detail": f"{url} does not answer: {reason}",
                "next": remedy,
            }
        ]
    rows = [{"check": "platform", "ok": bool(answer["ready"]), "detail": url, "next": ""}]
    for name, part in parts.items():
        ready, halts = bool(part.get("ready")), halts_next(parts) if name == "ingest" else ""
        facts = ", ".join(f"{k} {v}" for k, v in part.items() if k != "ready")
        remedy = halts if ready else "see its events in DATA/run"
        rows.append({"check": name, "ok": ready and not halts, "detail": facts, "next": remedy})
    return rows


def halts_next(parts: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns the remedy for halted partitions that the platform's parts report. Pure.

    Returns "" if there are none.
    """
    if not parts.get("ingest", {}).get("halted_partitions"):
        return ""
    return (
        "`vicinage freshness` shows which partitions are halted and why;"
        f" `vicinage tenant resume-ingest TENANT` resumes them ({HALTS})"
    )


def _row(name: str, check: Callable[[], str], remedy: str) -> Row:
    try:
        return {"check": name, "ok": True, "detail": check(), "next": ""}
    except Warned as warning:
        return {"check": name, "ok": True, "detail": f"warning: {warning}", "next": remedy}
    except Failed as failure:
        return {"check": name, "ok": False, "detail": str(failure), "next": failure.remedy}
    except (VicinageError, OSError, ImportError, RuntimeError, AssertionError) as error:
        return {
            "check": name,
            "ok": False,
            "detail": str(error) or type(error).__name__,
            "next": remedy,
        }


def _python() -> str:
    assert sys.version_info >= (3, 11), platform.python_version()
    return platform.python_version()


def _faiss(settings: Settings) -> str:
    from importlib.metadata import packages_distributions, version

    from indexer.backends import open_backend

    devices = sorted({settings.searcher.device, settings.indexer.device})
    for device in devices:
        open_backend(device)
    wheel = packages_distributions()["faiss"][0]
    return f"{wheel} {version(wheel)}, selectors honored, on {' and '.join(devices)}"


def _model(settings: Settings) -> str:
    from ingest.embedding.runtimes import chosen
    from ingest.embedding.tokenizer import model_folder
    from tenants.entities import DEFAULT_MODEL

    runtime = chosen(settings.embedder.runtime, settings.embedder.device)
    return f"{DEFAULT_MODEL.name} in {model_folder(DEFAULT_MODEL)}, by {runtime}"


def _disk(settings: Settings) -> str:
    existing = next(folder for folder in (settings.data, *settings.data.parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    assert free >= DISK_FREE_MIN, f"{free >> 20} MiB free in {settings.data}"
    return f"{free >> 30} GiB free"


def _files() -> str:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert soft >= FILES_MIN, f"{soft} open files"
    return f"{soft} open files"


def _absent(url: str) -> bool:
    """Returns whether the URL is a local file or folder that `up` has not created yet."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        return not Path(url).exists()
    path = {"sqlite": rest[1:], "file": rest}.get(scheme, "")
    return bool(path) and not Path(path).exists()


@contextmanager
def _engine(settings: Settings) -> "Iterator[Engine | None]":
    """Opens the catalog; yields None for a file that does not exist yet."""
    from vicinage.catalog import open_catalog

    url = settings.catalog_url.get_secret_value()
    if _absent(url):
        yield None
        return
    engine = open_catalog(url)
    try:
        yield engine
    finally:
        engine.dispose()


def _catalog(settings: Settings) -> str:
    from tenants.tables import migrate

    with _engine(settings) as engine:
        if engine is None:
            return NOT_YET
        migrate(engine)
        return engine.dialect.name


def _audit(settings: Settings) -> str:
    """Checks that the audit key is here if records have MACs. Does not create it."""
    from cluster.audit_key import path_of, read_key
    from tenants.audit import newest
    from vicinage.catalog import look

    path = path_of(settings)
    if read_key(path) is not None:
        return f"key in {path}"
    with _engine(settings) as engine:
        if engine is None:
            return NOT_YET
        with look(engine) as connection:
            _, _, keyed = newest(connection)
    assert not keyed, f"{path} is missing, and audit records have MACs"
    return NOT_YET


def _models(settings: Settings) -> str:
    """Checks that local models' files are on this machine, and that models' servers answer."""
    from ingest.embedding.check import check_server
    from ingest.embedding.tokenizer import model_folder
    from tenants.registry import Registry
    from vicinage.clock import SystemClock

    with _engine(settings) as engine:
        if engine is None:
            return NOT_YET
        models = Registry(engine, SystemClock()).models()
    for model in (m for m in models if not m.retired):
        if model.kind == "local":
            model_folder(model)
        else:
            check_server(model, settings.embedder.model_key(model.name))
    return ", ".join(f"{m.name} ({m.kind})" for m in models)


def _reranker(settings: Settings) -> str:
    """Checks that the cross-encoder's files are on this machine, or that its server answers."""
    import httpx2

    rerank = settings.rerank
    if rerank.url:
        key = rerank.key.get_secret_value()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        body = {"query": "well", "texts": ["well"]}
        try:
            answered = httpx2.post(
                f"{rerank.url.rstrip('/')}/rerank", json=body, headers=headers, timeout=10
            )
        except httpx2.HTTPError as error:
            raise RuntimeError(f"{rerank.url} does not answer: {error}") from error
        assert answered.status_code == httpx2.codes.OK, (
            f"{rerank.url} answers {answered.status_code}: {answered.text[:200]}"
        )
        return f"at {rerank.url}"
    if not rerank.model:
        return "not set"
    assert (Path(rerank.model) / "config.json").is_file(), f"there is no model in {rerank.model}"
    return f"in {rerank.model}"


def _log(settings: Settings) -> str:
    from vicinage.log import Record, open_log

    if _absent(settings.log_url):
        return NOT_YET
    with open_log(settings.log_url, settings.kafka) as log:
        log.ensure_topic("vicinage.doctor", retention_ms=3_600_000)
        offset = log.append("vicinage.doctor", 0, [Record(b"well")])[-1]
        return f"{settings.log_url.partition(':')[0]}, wrote position 0-{offset}"


def _topics(settings: Settings) -> str:
    """Checks that no topic of the platform has invalid settings."""
    from vicinage.log import open_log

    if _absent(settings.log_url):
        return NOT_YET
    with open_log(settings.log_url, settings.kafka) as log:
        topics = sorted(log.topics("vicinage."))
        found = log.topic_problems(topics)
    assert not found, "; ".join(
        f"{topic}: {', '.join(problems)}" for topic, problems in list(found.items())[:10]
    )
    return f"{len(topics)} topics"


def _ingest(settings: Settings) -> str:
    """Checks in the catalog that no partition of a documents topic is halted."""
    from tenants.registry import Registry
    from vicinage.clock import SystemClock

    with _engine(settings) as engine:
        if engine is None:
            return NOT_YET
        registry = Registry(engine, SystemClock())
        halted = registry.positions.halted({t.name for t in registry.tenants()})
    if halted:
        named = "; ".join(f"{s.tenant}/{s.partition} ({s.kind}): {s.reason}" for s in halted[:10])
        resume = "; ".join(
            f"vicinage tenant resume-ingest {name}"
            for name in sorted({s.tenant for s in halted})[:10]
        )
        raise Failed(
            f"{len(halted)} halted partitions: {named}", f"remove the cause, or {resume} ({HALTS})"
        )
    return "no partition is halted"


def access_warning(servers: Sequence[str], security: str, *, tenants: int, authorizer: bool) -> str:
    """Returns why other clients can read and write the platform's topics, or "". Pure.

    Returns "" for one tenant with brokers on this machine.
    """
    if tenants <= 1 and all(_is_loopback(server) for server in servers):
        return ""
    found = []
    if not authorizer:
        found.append(
            "the brokers have no authorizer: any client can read, write and delete every tenant's"
            " topics"
        )
    if security == "plaintext":
        found.append(
            "kafka.security is plaintext: the brokers cannot identify the platform's clients"
        )
    return "; ".join(found)


def _is_loopback(server: str) -> bool:
    host = server.rpartition(":")[0].strip("[]")
    return host in ("localhost", "::1") or host.startswith("127.")


def _access(settings: Settings) -> str:
    from tenants.registry import Registry
    from vicinage.clock import SystemClock

    if not settings.log_url.startswith("kafka://"):
        return "the log is a file on this machine"
    from vicinage.log.kafka_access import has_authorizer, servers_of

    servers = servers_of(settings.log_url)
    with _engine(settings) as engine:
        tenants = len(Registry(engine, SystemClock()).tenants()) if engine is not None else 0
    authorizer = has_authorizer(settings.log_url, settings.kafka)
    if warning := access_warning(
        servers, settings.kafka.security, tenants=tenants, authorizer=authorizer
    ):
        raise Warned(warning)
    return (
        "an authorizer restricts clients"
        if authorizer
        else "one tenant, and brokers on this machine"
    )


def _store(settings: Settings) -> str:
    import uuid

    from vicinage.store import open_store, shown

    if _absent(settings.store_url):
        return NOT_YET
    store = open_store(settings.store_url, cache=settings.data / "cache")
    ref = store.put(f"doctor/{uuid.uuid4().hex}", b"well")
    store.get(ref)
    store.delete(ref.path)
    return shown(settings.store_url)


def _segments(settings: Settings) -> str:
    """Checks that no damaged object of a segment needs an operator."""
    from tenants.quarantine import Quarantine
    from vicinage.clock import SystemClock

    with _engine(settings) as engine:
        if engine is None:
            return NOT_YET
        every = Quarantine(engine, SystemClock()).every()
    stuck = [d for d in every if d.state == "stuck"]
    assert not stuck, "; ".join(f"{d.path}: {d.reason}" for d in stuck[:10])
    noted = sum(d.state == "noted" for d in every)
    return (
        f"{noted} damaged objects wait to be rebuilt, {len(every) - noted} were rebuilt and are "
        "kept"
        " in quarantine"
    )


def _port(settings: Settings) -> str:
    from cluster import local

    if local.running(settings.data) is not None:
        return f"{settings.gateway.port}, used by the platform that runs here"
    ports = local.ports_of(settings)
    for host, port in ports:
        local.check_free(host, port)
    return f"{', '.join(str(port) for _, port in ports)} are free"
