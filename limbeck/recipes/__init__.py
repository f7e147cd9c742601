"""Recipes: what a run is, as plain data."""
