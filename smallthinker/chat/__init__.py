"""A conversation in the terminal: what is typed, what is kept, how an answer is shown. Part of the command line."""
