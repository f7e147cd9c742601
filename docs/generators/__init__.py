"""Pages of the documentation, generated from the registries, the docstrings and the schema of recipes."""
