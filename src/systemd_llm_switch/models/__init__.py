"""Models added and removed by one command: what a GGUF file says of itself, the flags that fit it, its unit and its
entry in the config.

Must not know the command line or the running proxy: `command/` asks and shows.
Start reading at `adding`.
"""
