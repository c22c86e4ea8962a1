"""Replies of models and what each must become: data in YAML, one file a kind, and the code that judges them."""
