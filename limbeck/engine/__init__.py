"""The stage loop: what trains learners from signals, and can be stopped at any moment."""
