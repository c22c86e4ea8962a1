"""`python -m systemd_llm_switch.setup`, as `./setup.sh` calls it."""

from systemd_llm_switch.setup.steps import main

raise SystemExit(main())
