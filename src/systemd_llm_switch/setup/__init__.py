"""The set-up: puts units, llama-server and the proxy in place for one user, checks them, and removes them again.

`setup.sh` and the command's verbs `setup`, `demo`, `check` and `uninstall` run it. It needs Python's standard
library only, since it runs before the proxy's own dependencies are installed.

Must not know the proxy's modules: it asks the installed proxy by a subprocess or over HTTP.
Start reading at `steps`.
"""
