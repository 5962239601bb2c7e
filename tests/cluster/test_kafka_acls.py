"""The permissions that the command prints.

tests/contract/test_kafka_security.py runs the platform with only these permissions.
"""

import json
from pathlib import Path

from click.testing import CliRunner

from cluster.cli import main


def run(tmp_path: Path, *words: str) -> str:
    done = CliRunner().invoke(main, ["cluster", "kafka-acls", "--data", str(tmp_path), *words])
    assert done.exit_code == 0, done.output
    return done.output


def test_a_tenants_producer_may_append_to_its_own_topic_and_to_nothing_else(tmp_path: Path) -> None:
    words = ("--principal", "User:team", "--tenant", "acme")
    assert run(tmp_path, *words).splitlines() == [
        (
            "kafka-acls.sh --bootstrap-server BROKER:9092 --add --allow-principal 'User:team'"
            " --operation Write --operation Describe --topic 'vicinage.docs.acme'"
        ),
        (
            "kafka-acls.sh --bootstrap-server BROKER:9092 --add --allow-principal 'User:team'"
            " --operation Read --operation Describe --topic 'vicinage.dead.acme'"
        ),
    ]
    found = json.loads(run(tmp_path, *words, "--json"))
    assert {a["name"] for a in found if a["operation"] == "Write"} == {"vicinage.docs.acme"}


def test_the_platform_is_permitted_its_own_topics_and_groups(tmp_path: Path) -> None:
    lines = run(tmp_path, "--principal", "User:vicinage").splitlines()
    assert [line for line in lines if "--topic" in line] == [
        (
            "kafka-acls.sh --bootstrap-server BROKER:9092 --add --allow-principal 'User:vicinage'"
            " --operation Read --operation Write --operation Create --operation Delete "
            "--operation Describe"
            " --operation DescribeConfigs --operation Alter --topic 'vicinage.' "
            "--resource-pattern-type prefixed"
        )
    ]
    assert any("--group 'vicinage.'" in line for line in lines)
