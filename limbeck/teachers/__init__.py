"""Where a role's signals come from: a live model, a moving average, an ensemble, a cache."""
