"""Tables and streams, training stars and checkpoints in files."""
