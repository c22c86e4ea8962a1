"""The command `llm-switch`: one module for each verb, and the table that names them.

A verb's module has `add_arguments(parser)` and `run(arguments)`, which returns an exit code of `exits`. It is imported
only when its verb is typed, so that each verb loads what it needs and nothing else.

Must not do a verb's work itself: the proxy (`serve`) or the set-up does it.
Start reading at `verbs`.
"""
