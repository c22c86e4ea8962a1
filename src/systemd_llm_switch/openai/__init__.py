"""OpenAI's formats, pure: a request's bytes in, the backend's bytes out, replies as events.

Must not know sockets, units or repair. Start reading at `request`.
"""
