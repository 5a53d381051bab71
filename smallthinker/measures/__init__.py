"""What a run cost: time of its kernels, against what processor and disk allow. Knows nothing about text."""
