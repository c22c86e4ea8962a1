"""`python -m installer`, as `./setup.sh` calls it."""

from installer.main import main

raise SystemExit(main())
