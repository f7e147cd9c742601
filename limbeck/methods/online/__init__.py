"""Methods whose models learn at the same time, from each other."""
