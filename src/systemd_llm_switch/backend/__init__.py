"""A llama-server over HTTP: the only place that speaks to one.

Must not know units, scheduling or repair. Start reading at `backend`; `exchange` is one request in progress.
"""
