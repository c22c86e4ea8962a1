"""Which requests may use a model now, and switches: stop units, start one, wait until its backend is ready.

Owns the one lock. Must not know HTTP requests; a caller holds a `Lease`. Start reading at `switcher`, then
`switch_run`.
"""
