"""The commands, one module each: `add` describes its arguments, `handle` does it and returns the exit code.

A module imports what its command needs only when it runs, so that `--help` is instant.
"""

from smallthinker.commands import (
    bench,
    cache_sim,
    calibrate,
    chat,
    convert,
    doctor,
    eval,
    inspect,
    plan,
    probe,
    run,
    serve,
    synth,
    trace,
)

# in the order of --help
COMMANDS = (run, chat, serve, convert, inspect, plan, doctor, probe, bench, synth, trace, calibrate, cache_sim, eval)
