"""Experts on disk: the store format, writing and conversion, readers and the background I/O thread.

Start with `store.Store.open`, `device.probe.profile_of` and `queues.open_queue`. Knows nothing about what stays in
memory (`smallthinker.cache`) or which experts come next (`smallthinker.router`).
"""
