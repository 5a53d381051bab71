"""Experts on disk: the store format, writing and conversion, and the queue that reads in the background.

Start with `store.Store.open`, `device.probe.profile_of` and `queues.open_queue`. Knows nothing about what stays in
memory (`smallthinker.cache`) or which experts come next (`smallthinker.router`).
"""
