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
    pull,
    run,
    serve,
    synth,
    trace,
    verify,
)

# in the order of --help
COMMANDS = (
    run,
    chat,
    serve,
    pull,
    convert,
    inspect,
    verify,
    plan,
    doctor,
    probe,
    bench,
    eval,
    synth,
    trace,
    calibrate,
    cache_sim,
)
