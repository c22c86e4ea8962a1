"""The routes: who may come in, which route answers, and what an operator can ask for.

Owns web.py, keys, origins and host names. Must not know how a request is forwarded or a unit is started: it reads the
request, calls, and writes the answer. Start reading at `application`.
"""
