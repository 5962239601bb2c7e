"""Warnings of `doctor`, and its report of halted partitions."""

import json
from pathlib import Path

import pytest
from resources import eventually, make_ingest, resources_in

from cluster.doctor import access_warning, examine
from tenants import provisioning, resuming
from vicinage.log import Record
from vicinage.settings import Settings

HERE, AWAY = ["127.0.0.1:9092", "localhost:9092", "[::1]:9092"], ["127.0.0.1:9092", "broker-1:9092"]


@pytest.mark.parametrize(
    ("servers", "tenants", "authorizer", "security", "parts"),
    [
        (HERE, 1, False, "plaintext", 0),
        (HERE, 2, False, "plaintext", 2),
        (AWAY, 0, False, "plaintext", 2),
        (AWAY, 1, True, "plaintext", 1),
        (AWAY, 1, False, "sasl-tls", 1),
        (AWAY, 9, True, "sasl-tls", 0),
    ],
)
def test_what_lets_other_clients_in_is_warned_of(
    servers, tenants, authorizer, security, parts
) -> None:
    said = access_warning(servers, security, tenants=tenants, authorizer=authorizer)
    assert ("authorizer" in said, "plaintext" in said) == (
        parts > 0 and not authorizer, parts > 0 and security == "plaintext",
    )  # fmt: skip
    assert len([part for part in said.split("; ") if part]) == parts


@pytest.mark.kafka
@pytest.mark.xdist_group("kafka")
def test_a_warning_is_no_failure_and_says_what_to_do(kafka_servers, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr("cluster.doctor._is_loopback", lambda _server: False)
    rows = examine(Settings(data=tmp_path / "data", log_url=f"kafka://{kafka_servers}"))
    [row] = [r for r in rows if r["check"] == "access"]
    assert row["ok"] is True
    assert "no authorizer" in row["detail"]
    assert "secure-kafka.md" in row["next"]


def test_a_halted_partition_is_a_failure_until_its_tenant_is_resumed(tmp_path: Path) -> None:
    base = resources_in(tmp_path / "data")
    tenant = provisioning.create_tenant(base.registry, base.log, "acme", partitions=1, actor="test")
    provisioning.create_collection(
        base.registry, base.log, "acme", "docs", dimension=3, slots_total=8, actor="test"
    )
    record = Record(json.dumps({"collection": "docs", "id": "a", "vector": [1, 0, 0]}).encode())
    ingest = make_ingest(base)

    def state() -> str | None:
        ingest.step(wait_s=0.05)
        return next(
            (
                s.state
                for s in base.registry.positions.of("acme")
                if s.position or s.state == "halted"
            ),
            None,
        )

    def row() -> dict[str, object]:
        return next(r for r in examine(base.settings) if r["check"] == "ingest")

    try:
        base.log.append(tenant.documents_topic, 0, [record])
        eventually(lambda: state() == "reading")
        assert (row()["ok"], row()["detail"]) == (True, "no partition is halted")
        base.log.delete_topic(tenant.documents_topic)
        base.log.ensure_topic(tenant.documents_topic)
        base.log.append(tenant.documents_topic, 0, [record])
        eventually(lambda: state() == "halted")
        found = row()
        assert found["ok"] is False
        assert "acme/0 (topic_replaced)" in str(found["detail"])
        assert "vicinage tenant resume-ingest acme" in str(found["next"])
        resuming.apply(base.log, base.registry, tenant, actor="test")
        eventually(lambda: state() == "reading")
        assert row()["ok"] is True
    finally:
        ingest.stop()
        base.close()
