"""What the tests share: a private user manager, real units, the proxy as a process, a stand-in backend."""
