"""The code blocks of documentation pages, and sessions that run them in order.

A comment on the line before a block changes how it is run. The first checks only its syntax. The
second sends a JSON block as the body of that request, which must succeed.

    <!-- run: no, REASON -->
    <!-- run: POST /v1/collections/docs/documents -->
"""

import ast
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx2

BLOCK = re.compile(
    r"(?:^ *<!-- run: (?P<note>.+?) -->\n+)?"
    r"^(?P<indent> *)```(?P<kind>\w+)[^\n]*\n(?P<code>.*?)^(?P=indent)```$",
    re.MULTILINE | re.DOTALL,
)
RUN_KINDS = ("sh", "python")
SHOWN_KINDS = ("text",)
"""Output of commands, and diagrams as text: these are not run."""
PYTHON_SESSION = """
import json, os, sys, traceback
names = {"__name__": "__main__"}
for line in sys.stdin:
    environment, code, where = json.loads(line)
    os.environ.update(environment)
    try:
        exec(compile(code, where, "exec"), names)
        print("\\0", 0, sep="", flush=True)
    except BaseException:
        print(traceback.format_exc(), "\\0", 1, sep="", flush=True)
"""


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block of a page; `where` is PAGE:LINE."""

    kind: str
    code: str
    note: str
    where: str

    @property
    def runs(self) -> bool:
        """Whether it runs as it is, in the page's session."""
        return self.kind in RUN_KINDS and not self.note


def blocks(page: Path, root: Path) -> list[Block]:
    """Returns the page's blocks, in order."""
    text = page.read_text()
    return [
        Block(
            found["kind"], dedent(found["code"]), (found["note"] or "").strip(),
            f"{page.relative_to(root)}:{text.count(chr(10), 0, found.start('code'))}",
        )
        for found in BLOCK.finditer(text)
    ]  # fmt: skip


def check_syntax(block: Block) -> None:
    """Raises if the block is not what its fence says."""
    match block.kind:
        case "sh":
            subprocess.run(["bash", "-n"], input=block.code, text=True, check=True, timeout=60)
        case "python":
            compile(block.code, block.where, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        case "json":
            json.loads(block.code)
        case "toml":
            tomllib.loads(block.code)
        case kind:
            assert kind in SHOWN_KINDS, f"{block.where}: a block of kind {kind!r} has no check"


class Session:
    """A shell in a folder, with a Python beside it.

    Its variables and directory last from block to block.
    """

    def __init__(self, folder: Path, variables: dict[str, str], replaced: dict[str, str]) -> None:
        self._folder, self._replaced = folder, replaced
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PATH": path, **variables}
        self._shell = self._open(["bash", "--norc"], environment)
        self._python = self._open([sys.executable, "-u", "-c", PYTHON_SESSION], environment)

    def _open(self, words: list[str], environment: dict[str, str]) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            words, cwd=self._folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, block: Block) -> str:
        """Returns the output of the block.

        Raises AssertionError, with the output, if one of its commands fails.
        """
        code = block.code
        for written, here in self._replaced.items():
            code = code.replace(written, here)
        if block.kind == "sh":
            # -e ends the subshell at the first failure. The next block gets its variables and
            # directory.
            kept = shlex.quote(str(self._folder / ".variables"))
            self._tell(
                self._shell,
                f"( set -euo pipefail\n{code}\nexport -p > {kept} ) < /dev/null 2>&1; S=$?",
            )
            self._tell(self._shell, f"[ $S = 0 ] && . {kept}; printf '\\0%s\\n' $S")
            status, said = self._heard(self._shell)
        else:
            self._tell(self._python, json.dumps([self._variables(), code, block.where]))
            status, said = self._heard(self._python)
        assert status == 0, f"{block.where} failed:\n{code}\n{said}"
        return said

    def send(self, block: Block, url: str) -> Any:
        """Sends a JSON block as the body of the request that its note names."""
        method, path = block.note.split()
        key = self._variables()["KEY"]
        headers = {"authorization": f"Bearer {key}", "content-type": "application/json"}
        answer = httpx2.request(method, url + path, headers=headers, content=block.code, timeout=60)
        assert answer.is_success, f"{block.where}: {answer.status_code} {answer.text}"
        return answer

    def _variables(self) -> dict[str, str]:
        self._tell(self._shell, "env -0 | tr '\\0' '\\1'; printf '\\0%s\\n' 0")
        _, said = self._heard(self._shell)
        return dict(pair.split("=", 1) for pair in said.split("\1") if "=" in pair)

    @staticmethod
    def _tell(process: "subprocess.Popen[str]", words: str) -> None:
        assert process.stdin
        process.stdin.write(words + "\n")
        process.stdin.flush()

    @staticmethod
    def _heard(process: "subprocess.Popen[str]") -> tuple[int, str]:
        """Reads up to the status line, which begins with a zero byte."""
        assert process.stdout
        lines: list[str] = []
        for line in process.stdout:
            before, mark, status = line.partition("\0")
            lines.append(before)
            if mark:
                return int(status), "".join(lines)
        raise AssertionError("the session ended:\n" + "".join(lines))

    def close(self) -> None:
        """Ends the shell and the Python."""
        for process in (self._shell, self._python):
            assert process.stdin
            process.stdin.close()
            process.wait(20)
