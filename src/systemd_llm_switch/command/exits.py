"""The exit codes of the command."""

DONE = 0
FAILED = 1  # refused or failed; stderr says why
USAGE = 2  # wrong usage
NO_PROXY = 3  # no proxy answers
