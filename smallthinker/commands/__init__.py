"""The commands, one module each: `add` describes its arguments, `handle` does it and returns the exit code.

A module imports what its command needs only when it runs, so that `--help` is instant.
"""

from smallthinker.commands import (
    alias,
    batch,
    bench,
    cache_sim,
    calibrate,
    chat,
    convert,
    doctor,
    eval,
    list,
    plan,
    probe,
    pull,
    rm,
    run,
    serve,
    show,
    synth,
    trace,
    verify,
)

# in the order of --help
COMMANDS = (
    run,
    chat,
    serve,
    batch,
    pull,
    convert,
    list,
    show,
    verify,
    alias,
    rm,
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
