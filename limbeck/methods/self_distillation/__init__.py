"""Methods whose teacher is of the student's own kind."""
