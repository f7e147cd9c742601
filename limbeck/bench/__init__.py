"""Comparisons of methods on equal terms, and the results that limbeck ships."""
