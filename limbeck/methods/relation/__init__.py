"""Methods that match how the samples of a batch, or of a memory, relate to each other."""
