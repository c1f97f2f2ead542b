"""One module per command; each has `register(app)`, and imports what it needs inside its functions."""
