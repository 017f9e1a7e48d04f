"""Writers killed at random moments, for as long as you like: `python -m tests.stress`.

    __main__     the command
    contenders   the handlers that are put under stress, and their options
    rounds       one round: a log, its writers, the kills, the check; and a row of many rounds
    table        the rows as a Markdown table
    shipping     a command of its own: writers and those who ship their files

Each round has a directory of its own, which is removed when the log was found sound. The check is
`tests.conservation`.
"""
