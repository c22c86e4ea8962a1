"""The web page at `/`: its files, and what they are sent with.

Owns the files under `static/` and the headers that bind them. Must not know the proxy: the page asks it through the
same API as everybody else. Start reading at `static/app.js`.
"""
