"""What a model is, as data: one description for all families, and one file each that maps a configuration to it."""
