"""The APIs beside OpenAI's chat: Anthropic's messages and OpenAI's responses. Pure.

A request in one of them becomes a chat request, and the reply to it goes back in the client's dialect. So the queue,
the repair and llama-server know chats only. Must not know sockets, units or the config. Start reading at `routes`.
"""
