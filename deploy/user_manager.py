"""The command `python3 deploy/user_manager.py`: a private systemd user manager. The package has the code."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from systemd_llm_switch.setup.user_manager import UserManager, UserManagerError, is_reachable, main

__all__ = ["UserManager", "UserManagerError", "is_reachable", "main"]

if __name__ == "__main__":
    sys.exit(main())
