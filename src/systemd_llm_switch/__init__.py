"""An OpenAI-compatible proxy that runs one large model at a time on one GPU, as systemd user units."""

__version__ = "0.1.0"
