"""The commands, one module each: `add` describes its arguments, `handle` does it and returns the exit code.

A module imports what its command needs only when it runs, so that `--help` is instant.
"""

from smallthinker.commands import cache_sim, calibrate, chat, convert, doctor, inspect, run, serve, synth, trace

COMMANDS = (run, chat, serve, convert, inspect, doctor, synth, trace, calibrate, cache_sim)  # in the order of --help
