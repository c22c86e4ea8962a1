"""HTTP on the wire: sockets, connections, threads, the bytes of requests and of answers.

Owns cheroot, its limits and its shutdown. Must not know routes, models or units. Start reading at `server`, then
`request` for one request from its head to the end of its answer.
"""
