"""Methods that match intermediate feature maps."""
