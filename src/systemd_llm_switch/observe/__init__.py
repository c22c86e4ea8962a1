"""What people and programs see of the proxy's work: the last requests, events, metrics and journal lines.

Owns what is kept for them and how they get it. Must not know how a request is served or a unit is started: other
packages call it when a request or a switch ends. No request waits for it, and it never keeps prompts or answers.
Start reading at `hub`.
"""
