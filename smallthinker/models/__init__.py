"""What a model is, as data: one description for all families; families/ maps a configuration to it, a file each."""
