#!/usr/bin/env bash
# Runs every check and test; needs nothing prepared.   ./run_tests.sh [pytest's arguments]
#
# Installs what is missing (by apt-get only as root), keeps all else in .venv, which ./setup.sh shares, and in
# tests/clients/node_modules, and leaves no process and no file behind. The exit code is that of the first step that
# fails.
set -euo pipefail
cd -- "$(dirname -- "${BASH_SOURCE[0]}")"

find_python() {
    local python
    for python in python3 python3.14 python3.13 python3.12 python3.11; do
        if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            command -v "$python"
            return
        fi
    done
}

# The Debian packages without which the tests cannot run, one a line.
missing_packages() {
    command -v systemctl >/dev/null || echo systemd
    command -v strace >/dev/null || echo strace
    command -v node >/dev/null || echo nodejs
    command -v npm >/dev/null || echo npm
    local python
    python=$(find_python)
    if [ -z "$python" ]; then
        echo python3
        echo python3-venv
    elif ! "$python" -c 'import ensurepip' 2>/dev/null; then
        echo python3-venv
    fi
}

provide_packages() {
    local missing
    mapfile -t missing < <(missing_packages)
    if [ ${#missing[@]} -eq 0 ]; then return; fi
    local line="apt-get update && apt-get install --yes --no-install-recommends ${missing[*]}"
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "✗ missing: ${missing[*]}. On Debian or Ubuntu, as root: $line" >&2
        exit 1
    fi
    echo "▸ installing ${missing[*]} with apt-get"
    export DEBIAN_FRONTEND=noninteractive
    apt-get -qq update
    apt-get -qq install --yes --no-install-recommends "${missing[@]}" >/dev/null
}

# .venv as ./setup.sh makes it, and what the tests need beside it: with a stamp, since asking pip takes seconds.
provide_venv() {
    local make='import os; from systemd_llm_switch.setup.places import Places
from systemd_llm_switch.setup.python_env import provide_venv
provide_venv(Places.of(os.environ))'
    PYTHONPATH=src PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1 "$(find_python)" -c "$make"
    local wanted
    wanted=$(cat requirements.txt tests/requirements.txt deploy/*requirements.txt | sha256sum)
    if [ "$(cat .venv/.tests 2>/dev/null)" != "$wanted" ]; then
        echo "▸ installing what the tests need (a download of 200 MB the first time)"
        local pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet install)
        "${pip[@]}" --requirement tests/requirements.txt
        "${pip[@]}" --no-deps --require-hashes --requirement deploy/demo-requirements.txt
        echo "$wanted" >.venv/.tests
    fi
    # Made with sudo, it must not be closed to the person whose clone this is.
    if [ "$(id -u)" -eq 0 ]; then chown --recursive --reference=. .venv; fi
}

# Node's clients, which the tests talk through; with a stamp, too.
provide_node_modules() {
    local modules=tests/clients/node_modules wanted
    if ! node -e 'process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)'; then
        echo "✗ the tests need Node 18 or later; this is $(node --version)" >&2
        exit 1
    fi
    wanted=$(cat tests/clients/package-lock.json tests/clients/.npmrc | sha256sum)
    if [ "$(cat "$modules/.tests" 2>/dev/null)" != "$wanted" ]; then
        echo "▸ installing Node's clients (a download of 10 MB the first time)"
        (cd tests/clients && npm ci --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error >/dev/null)
        echo "$wanted" >"$modules/.tests"
    fi
    if [ "$(id -u)" -eq 0 ]; then chown --recursive --reference=. "$modules"; fi
}

# Ends what a killed pytest could not: user managers and proxies that live in this run's own folder.
clean_up() {
    local stop='import sys; from pathlib import Path; from systemd_llm_switch.setup.user_manager import UserManager
for manager in UserManager.all():
    if manager.home.is_relative_to(Path(sys.argv[1])): manager.stop(within_s=5)'
    PYTHONPATH=src .venv/bin/python -c "$stop" "$work"
    local line
    for line in /proc/[0-9]*/cmdline; do
        if grep --quiet --fixed-strings -- "$work" "$line" 2>/dev/null; then
            line=${line%/cmdline}
            kill -KILL "${line#/proc/}" 2>/dev/null || true
        fi
    done
    rm -rf -- "$work"
}

run_pytest() {
    work=$(mktemp --directory)
    trap clean_up EXIT
    # In the background, so that a signal is passed on at once; as SIGINT, at which pytest tears everything down.
    TMPDIR=$work env --default-signal=INT .venv/bin/python -m pytest "$@" <&0 &
    local pytest=$! status=0
    trap 'kill -INT "$pytest" 2>/dev/null' TERM HUP
    trap : INT # the terminal sends it to pytest, too
    while kill -0 "$pytest" 2>/dev/null; do
        wait "$pytest" && status=0 || status=$?
    done
    return "$status"
}

provide_packages
provide_venv
provide_node_modules
.venv/bin/ruff check --quiet --output-format=concise src tests deploy
.venv/bin/ruff format --quiet --check src tests deploy
.venv/bin/mypy --no-error-summary
if [ "$(id -u)" -ne 0 ]; then
    echo "! not root: most tests will fail, since only root can start a private systemd user manager" >&2
fi
run_pytest "$@"
