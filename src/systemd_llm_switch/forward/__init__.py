"""One request from its bytes to its answer: lease, backend, repair, reply.

Must not know web.py, cheroot or systemd. Start reading at `proxy`.
"""
