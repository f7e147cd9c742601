"""What is shown of methods, runs and comparisons: in the terminal, on pages, in the documentation."""
