"""Facts about a store, a machine and a run, judged and written for people."""
