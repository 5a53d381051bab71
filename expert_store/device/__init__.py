"""What the disk is: its probe, profiles, emulation and real throttles. Knows nothing about models."""
