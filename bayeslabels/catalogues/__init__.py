"""The test step of catalogues larger than memory."""
