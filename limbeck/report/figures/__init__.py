"""Drawings of a report. One file a drawing."""
