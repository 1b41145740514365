"""One survey's labels from those of another."""
