"""Templates of strangers, rendered within bounds."""
