"""The user manager, its journal and its sockets: the only place that speaks to systemd.

Must not know models or who decides. Start reading at `manager`.
"""
