"""Starts a PostgreSQL for development and tests: loopback only, from Debian's package.

    python deploy/postgres/postgres.py start --dir DIR --port PORT [--detach]
    python deploy/postgres/postgres.py stop --dir DIR

`start` prints the SQLAlchemy URL of its database. The server does not run as root: as root, it runs
as the user `postgres`.
"""

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

BIN = next(iter(sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)), Path("/usr/bin"))
NAME = "vicinage"


def start(folder: Path, port: int) -> str:
    """Starts a server on 127.0.0.1:`port` with its data in `folder`; returns its URL."""
    home = home_of(folder)
    if not (home / "data" / "PG_VERSION").exists():
        home.mkdir(parents=True, exist_ok=True)
        if os.geteuid() == 0:
            shutil.chown(home, "postgres")
        _run(home, "initdb", "-D", str(home / "data"), "-U", NAME, "-A", "trust", "-E", "UTF8")
    options = (
        f"-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={home} -c "
        "max_connections=200"
    )
    _run(
        home,
        "pg_ctl",
        "-D",
        str(home / "data"),
        "-l",
        str(home / "server.out"),
        "-w",
        "-t",
        "60",
        "-o",
        options,
        "start",
    )
    found = _run(
        home,
        "psql",
        "-h",
        "127.0.0.1",
        "-p",
        str(port),
        "-U",
        NAME,
        "-d",
        "postgres",
        "-tAc",
        f"SELECT 1 FROM pg_database WHERE datname = '{NAME}'",
    )
    if found.strip() != "1":
        _run(home, "createdb", "-h", "127.0.0.1", "-p", str(port), "-U", NAME, NAME)
    return f"postgresql+psycopg://{NAME}@127.0.0.1:{port}/{NAME}"


def stop(folder: Path) -> None:
    """Stops the server that runs on `folder`."""
    home = home_of(folder)
    _run(home, "pg_ctl", "-D", str(home / "data"), "-m", "fast", "-w", "-t", "60", "stop")


def home_of(folder: Path) -> Path:
    """Returns the folder of its files.

    It is `folder`, or, as root, a folder that the user `postgres` can access, named in `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if os.geteuid() != 0:
        return folder.resolve()
    note = folder / "home"
    if not note.exists():
        note.write_text(tempfile.mkdtemp(prefix="vicinage-postgres-"))
    return Path(note.read_text())


def _run(home: Path, program: str, *words: str) -> str:
    user = {"user": "postgres"} if os.geteuid() == 0 else {}
    if os.geteuid() == 0:
        shutil.chown(home, "postgres")
        home.chmod(0o700)
    done = subprocess.run(  # type: ignore[call-overload]  # `user` is known to subprocess
        [str(BIN / program), *words],
        capture_output=program != "pg_ctl",
        text=True,
        timeout=120,
        check=False,
        cwd=home,
        stdin=subprocess.DEVNULL,
        **(
            {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
            if program == "pg_ctl"
            else {}
        ),
        **user,
    )
    if done.returncode != 0:
        raise RuntimeError(
            f"{program} ended with {done.returncode}: "
            f"{done.stderr or (home / 'server.out').read_text()[-1000:]}"
        )
    return str(done.stdout or "")


def main() -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=["start", "stop"])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--port", type=int, default=5432)
    parser.add_argument(
        "--detach", action="store_true", help="accepted for symmetry: the server always detaches"
    )
    args = parser.parse_args()
    if args.action == "stop":
        stop(args.dir)
    else:
        print(start(args.dir, args.port), flush=True)


if __name__ == "__main__":
    main()
