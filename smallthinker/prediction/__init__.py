"""What a model will do on a machine before it is converted: memory, speed, and what limits it.

Measuring (`kernel_bench`, `disks`) and computing are apart: everything else is a pure function of a model's shapes, of
what was measured and of a routing.
"""
