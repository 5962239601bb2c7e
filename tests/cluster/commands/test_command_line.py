"""The command line's refusals before anything is opened, and its usage texts."""

import json
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from gate import serving
from servers import free_port
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from cluster.cli import main
from cluster.commands.platform import _await_ready
from cluster.reference import pages
from vicinage.errors import Unavailable


def ended(*words: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, list(words))
    return done.exit_code, done.output


@pytest.mark.parametrize("command", ["up", "down"])
@pytest.mark.parametrize("option", ["--url", "--key"])
def test_what_is_about_this_machine_alone_takes_no_platform_elsewhere(
    command: str, option: str, tmp_path: Path
) -> None:
    code, said = ended(command, "--data", str(tmp_path / "data"), option, "http://127.0.0.1:9")
    assert code == 2 and "No such option" in said and option in said
    assert not (tmp_path / "data").exists()


def test_variables_that_name_a_platform_elsewhere_do_not_stop_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VICINAGE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("VICINAGE_KEY", "vk_x")
    assert ended("down", "--data", str(tmp_path), "--json") == (
        0,
        f'{{"stopped": false, "data": "{tmp_path}"}}\n',
    )


def test_doctor_checks_the_platform_that_it_is_given(tmp_path: Path) -> None:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        held.listen()
        port = held.getsockname()[1]
        (tmp_path / "own.toml").write_text(f"[gateway]\nport = {port}\n")
        for words in (("--port", str(port)), ("--config", str(tmp_path / "own.toml"))):
            code, said = ended("doctor", "--json", "--data", str(tmp_path / "data"), *words)
            [row] = [row for row in json.loads(said) if row["check"] == "port"]
            assert code == 1 and f":{port}" in row["detail"], words
        code, said = ended("doctor", "--json", "--url", f"http://127.0.0.1:{free_port()}")
        assert code == 1 and "does not answer" in json.loads(said)[0]["detail"]
    assert not (tmp_path / "data").exists()


def test_doctor_asks_a_platform_elsewhere_what_it_says_of_itself() -> None:
    async def readyz(_request: Request) -> JSONResponse:
        return JSONResponse(
            {"ready": False, "parts": {"log": {"ready": True}, "embedder": {"ready": False}}}, 503
        )

    with serving(Starlette(routes=[Route("/readyz", readyz)])) as url:
        code, said = ended("doctor", "--json", "--url", url)
    assert code == 1
    assert {row["check"]: row["ok"] for row in json.loads(said)} == {
        "platform": False,
        "log": True,
        "embedder": False,
    }


@pytest.mark.parametrize("halted", [0, 2])
def test_a_platform_elsewhere_reports_halted_partitions(halted: int) -> None:
    async def readyz(_request: Request) -> JSONResponse:
        return JSONResponse(
            {"ready": True, "parts": {"ingest": {"ready": True, "halted_partitions": halted}}}
        )

    with serving(Starlette(routes=[Route("/readyz", readyz)])) as url:
        examined, rows = ended("doctor", "--json", "--url", url)
        code, said = ended("status", "--json", "--url", url)
    [row] = [row for row in json.loads(rows) if row["check"] == "ingest"]
    assert (examined, row["ok"], "resume-ingest" in row["next"]) == (
        int(halted > 0),
        halted == 0,
        halted > 0,
    )
    assert (code, json.loads(said)["ready"]) == (0, True), "every other partition is read"
    assert ("resume-ingest" in json.loads(said).get("next", "")) == (halted > 0)


def test_a_start_that_takes_too_long_says_what_is_missing_and_how_far_it_came(
    tmp_path: Path, capsys
) -> None:
    (tmp_path / "run").mkdir()
    event = {"event": "model is loaded", "level": "error"}
    (tmp_path / "run" / "embedder.log").write_text(json.dumps(event) + "\n")
    running = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        with pytest.raises(
            Unavailable,
            match=r"the gateway of .* not ready within 0 s.*embedder: event=model is loaded",
        ):
            _await_ready(
                f"http://127.0.0.1:{free_port()}", running, tmp_path / "run" / "supervisor.log", 0.3
            )
    finally:
        running.kill()
        running.wait()
    assert "waiting for the gateway (" in capsys.readouterr().err


def test_freshness_is_of_tenants_and_does_not_drop_a_collection_in_silence(tmp_path: Path) -> None:
    code, said = ended("freshness", "acme/docs", "--data", str(tmp_path))
    assert code == 2 and "vicinage collection show" in said


def test_the_reference_says_what_every_option_means_and_which_arguments_may_be_left_out() -> None:
    page = pages()["commands.md"]
    assert [
        line for line in page.splitlines() if line.startswith("- ") and line.rstrip().endswith("`")
    ] == []
    for usage in (
        "collection list [OPTIONS] [TENANT]",
        "key create [OPTIONS] [TENANT]",
        "freshness [OPTIONS] [TENANT]",
    ):
        assert f"## `vicinage {usage}`" in page


@pytest.mark.parametrize(
    ("name", "cells"),
    [("settings.md", 5), ("metrics.md", 4), ("errors.md", 3), ("http-routes.md", 3)],
)
def test_a_bar_within_a_cell_does_not_end_it(name: str, cells: int) -> None:
    rows = [line.replace(r"\|", "") for line in pages()[name].splitlines() if line.startswith("|")]
    assert len(rows) > 2 and {row.count("|") for row in rows} == {cells + 1}


def walked(
    command: click.Command, words: tuple[str, ...] = ()
) -> Iterator[tuple[str, click.Command]]:
    """Yields every command that is not a group, with its words."""
    if isinstance(command, click.Group):
        if words and command.invoke_without_command:
            yield " ".join(words), command
        for name, each in command.commands.items():
            yield from walked(each, (*words, name))
    elif not command.hidden:
        yield " ".join(words), command


def command_of(words: list[str]) -> tuple[str, click.Command]:
    """Parses a command line without running it. Raises click.UsageError."""
    command: click.Command = main
    context = main.make_context("vicinage", words)
    path: list[str] = []
    while isinstance(command, click.Group) and (left := [*context._protected_args, *context.args]):
        name, found, rest = command.resolve_command(context, left)
        assert name is not None and found is not None
        path.append(name)
        command, context = found, found.make_context(name, rest, parent=context)
    return " ".join(path), command


@pytest.mark.parametrize(
    ("words", "command"), list(walked(main)), ids=[words for words, _ in walked(main)]
)
def test_the_help_of_every_command_has_examples_that_parse(
    words: str, command: click.Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "VICINAGE_CONFIG", ""
    )  # undone afterwards: an example may name a file of settings
    lines = [line.strip() for line in (command.help or "").splitlines()]
    examples = [line for line in lines if line.startswith("vicinage ")]
    assert examples, f"`vicinage {words} --help` has no example"
    for example in examples:
        assert command_of(shlex.split(example)[1:])[1] is command, example
        assert example in ended(*words.split(), "--help")[1], "each on a line of its own"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("tenant", "create"), "Missing argument 'NAME'"),
        (("tenant", "nope"), "No such command 'nope'"),
        (("tenant", "delete", "acme"), "Nothing was changed: add --yes"),
        (("collection", "show", "acme"), "write TENANT/COLLECTION"),
        (("cluster", "kafka-acls", "--principal", "vicinage"), "write TYPE:NAME, as User:vicinage"),
        (
            ("cluster", "kafka-acls", "--principal", "User:a", "--tenant", "No!"),
            "not a valid tenant name",
        ),
    ],
)
def test_usage_errors_are_json_on_stderr_with_json(
    words: tuple[str, ...],
    says: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["vicinage", *words, "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out) == (2, "")
    assert says in json.loads(err)["error"]["detail"]


def test_a_confirmation_goes_to_stderr(tmp_path: Path) -> None:
    done = CliRunner().invoke(
        main, ["tenant", "delete", "acme", "--data", str(tmp_path)], input="n\n"
    )
    assert done.exit_code == 1
    assert done.stdout == ""
    assert "Delete tenant acme" in done.stderr


def test_a_collection_is_named_in_one_word_or_two(tmp_path: Path) -> None:
    def run(*words: str) -> tuple[int, str]:
        return ended(*words, "--data", str(tmp_path))

    assert run("tenant", "create", "acme")[0] == 0
    assert run("collection", "create", "acme/docs", "--dimension", "3")[0] == 0
    assert run("collection", "create", "acme", "more", "--dimension", "3")[0] == 0
    assert run("collection", "update", "acme", "docs", "--recall", "0.9")[0] == 0
    for words in (("acme/docs",), ("acme", "docs")):
        assert "0.9" in run("collection", "show", *words)[1]
    assert "no collection 'docs?x'" in run("collection", "show", "acme", "docs?x")[1]
    assert "has a slash" in run("tenant", "show", "acme/collections/docs")[1]
    assert run("collection", "delete", "acme", "more", "--yes")[0] == 0


def test_a_server_that_is_no_platform_is_said_to_be_none(tmp_path: Path) -> None:
    async def page(_request: Request) -> Response:
        return Response("<html>hello</html>", 200)

    with serving(Starlette(routes=[Route("/{path:path}", page)])) as url:
        code, said = ended("tenant", "list", "--url", url, "--key", "k", "--data", str(tmp_path))
    assert code == 3
    assert "is not a Vicinage platform" in said


def test_status_of_a_platform_here_whose_gateway_is_away_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = {"pid": 1, "url": f"http://127.0.0.1:{free_port()}", "roles": {}}
    monkeypatch.setattr("cluster.local.running", lambda _data: state)
    assert ended("status", "--data", str(tmp_path))[0] == 1


def test_status_of_an_address_where_nothing_answers_is_no_platform(tmp_path: Path) -> None:
    code, _ = ended("status", "--url", f"http://127.0.0.1:{free_port()}", "--data", str(tmp_path))
    assert code == 3


def test_the_command_line_imports_no_heavy_library_before_a_command_runs() -> None:
    heavy = ("numpy", "pyarrow", "httpx2", "sqlalchemy", "pydantic", "faiss", "torch", "rich")
    asked = f"import sys, cluster.cli; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", asked], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.strip() == "[]"
