"""What is measured: stars, their blocks, and the columns that these come from."""
