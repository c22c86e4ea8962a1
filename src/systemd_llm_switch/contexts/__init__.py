"""Contexts across a switch: what a model has read of a conversation is saved to a file, and read back later.

Must not know HTTP routes, the scheduler or the switcher's lock. docs/contexts.md says why. Start reading at `keeper`.
"""
