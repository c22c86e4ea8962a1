"""The user manager, its journal and its sockets: the only place that speaks to systemd.

Must not know models or decisions. Start reading at `manager`, then `unit` and `journal`.
"""
