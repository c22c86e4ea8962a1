"""`python -m systemd_llm_switch`: the command `llm-switch`, by its package."""

from systemd_llm_switch.main import main

raise SystemExit(main())
