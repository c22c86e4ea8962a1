"""Who may use a model now, and one switch carried out: units stopped, a unit started, its backend ready.

Owns the one lock. Must not know HTTP requests; a caller holds a `Lease`. Start reading at `switcher`, then
`switch_run`.
"""
