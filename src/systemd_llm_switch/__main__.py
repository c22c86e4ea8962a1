"""`python -m systemd_llm_switch` starts the proxy."""

from systemd_llm_switch.main import main

raise SystemExit(main())
