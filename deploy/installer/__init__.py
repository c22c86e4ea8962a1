"""The set-up of systemd-llm-switch. Needs Python's standard library alone; `./setup.sh` starts it."""
