"""What people and programs see of the proxy's work: the last requests, events as they happen, and journal lines.

Owns what is kept for them and how it is handed out. Must not know how a request is served or a unit is started: the
others call it when something ended. Nothing here runs on the way of a request, and nothing holds what was asked or
answered. Start reading at `hub`.
"""
