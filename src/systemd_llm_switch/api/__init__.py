"""The routes: who may use the proxy, which route answers, and the operator's commands.

Owns web.py, keys, origins and host names. Must not know how a request is forwarded or a unit is started: it reads the
request, makes one call and writes the answer. Start reading at `application`.
"""
