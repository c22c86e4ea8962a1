#!/usr/bin/env bash
# Sets systemd-llm-switch up. The work is done by src/systemd_llm_switch/setup; this finds a Python that is new enough.
set -euo pipefail

script=${BASH_SOURCE[0]}
while [[ -L $script ]]; do # called through a symbolic link
    link=$(readlink -- "$script")
    [[ $link = /* ]] && script=$link || script=$(dirname -- "$script")/$link
done
repository=$(cd -- "$(dirname -- "$script")" && pwd -P)

for python in python3 python3.14 python3.13 python3.12 python3.11; do
    if "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
        PYTHONPATH="$repository/src" PYTHONDONTWRITEBYTECODE=1 PYTHONUTF8=1 \
            exec "$python" -P -m systemd_llm_switch.setup "$@"
    fi
done
sudo=$([[ $EUID = 0 ]] || echo "sudo ")
echo "✗ Python 3.11 or newer is needed. On Debian or Ubuntu:" >&2
echo "  ${sudo}apt-get update && ${sudo}apt-get install --yes python3 python3-venv systemd" >&2
exit 1
