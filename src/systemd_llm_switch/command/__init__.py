"""The command `llm-switch`: one module a verb, and the table that names them.

A verb's module has `add_arguments(parser)` and `run(arguments)`, which returns an exit code of `exits`. It is imported
only when its verb is typed, so that each verb loads what it needs and nothing else.

Must not do a verb's work: that is the proxy's (`serve`) or the set-up's.
Start reading at `verbs`.
"""
