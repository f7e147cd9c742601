"""The model zoo, models of other libraries by name, their weights and their cost."""
