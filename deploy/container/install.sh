#!/bin/sh
# Installs the wheel in a directory into /opt/vicinage: install.sh WHEELS EXTRAS. Needs Python 3.11 to 3.13 with venv.
# The Dockerfile runs it; deploy/container/check.sh runs it in a bare Debian.
set -eu
wheels=$1
extras=$2
python3 -m venv /opt/vicinage
set -- "$wheels"/vicinage-*.whl
/opt/vicinage/bin/pip install --quiet --no-cache-dir --disable-pip-version-check "$1[$extras]"
/opt/vicinage/bin/pip uninstall --quiet --yes pip
/opt/vicinage/bin/vicinage --version
