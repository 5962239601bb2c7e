"""Copies the scripts and styles of the pages /docs and /redoc into query/api/static, compressed.

`python tests/e2e/openapi/vendor.py` downloads the pinned packages with npm and checks their hashes.
"""

import base64
import gzip
import hashlib
import subprocess
import tarfile
import tempfile
from pathlib import Path

STATIC = Path(__file__).resolve().parents[3] / "query" / "api" / "static"
PACKAGES = {
    "swagger-ui-dist@5.35.0": (
        "U06rpMtW9V3XPGOBeamTUSr0Z09jMX4IJuANpE/EZbAhw0G8CgwrzU4YmXkn/h0wCDNsXdGarTNNHC3sU8yVUQ==",
        {
            "swagger-ui-bundle.js": "swagger-ui-bundle.js",
            "swagger-ui.css": "swagger-ui.css",
            "LICENSE": "swagger-ui.LICENSE.txt",
            "NOTICE": "swagger-ui.NOTICE.txt",
            "swagger-ui-bundle.js.LICENSE.txt": "swagger-ui-bundle.js.LICENSE.txt",
        },
    ),
    "redoc@2.5.4": (
        "M6jWhG1qoBnH6TFmzJnstyCZ87HmOY/UzDm78mHiYihEdlV/YcS9ogOo1NlElnJMeLsyxHFe2yFc4sNjHTrABQ==",
        {
            "bundles/redoc.standalone.js": "redoc.standalone.js",
            "bundles/redoc.standalone.js.LICENSE.txt": "redoc.standalone.js.LICENSE.txt",
            "LICENSE": "redoc.LICENSE.txt",
        },
    ),
}
"""Package and version: its SHA-512, and the files that are copied, with their new names."""


def vendor(package: str, sha512: str, names: dict[str, str], folder: Path) -> None:
    """Downloads one package and writes its files."""
    words = ["npm", "pack", "--silent", "--pack-destination", str(folder), package]
    archive = subprocess.run(words, check=True, capture_output=True, text=True).stdout.split()[-1]
    data = (folder / archive).read_bytes()
    assert base64.b64encode(hashlib.sha512(data).digest()).decode() == sha512, package
    with tarfile.open(folder / archive) as found:
        for name, written in names.items():
            member = found.extractfile(f"package/{name}")
            assert member is not None, name
            content = member.read()
            if written.endswith((".js", ".css")):
                (STATIC / f"{written}.gz").write_bytes(gzip.compress(content, 9, mtime=0))
            else:
                (STATIC / written).write_bytes(content)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as made:
        for package, (sha512, names) in PACKAGES.items():
            vendor(package, sha512, names, Path(made))
