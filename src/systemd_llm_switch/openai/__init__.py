"""OpenAI's formats, pure: a request's bytes in, the backend's bytes out, replies as events.

Must not know sockets, units or how a reply is repaired. Start reading at `request`.
"""
