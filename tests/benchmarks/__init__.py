"""What logging costs, measured against the limit and the peers: `python -m tests.benchmarks`.

    __main__    the command
    harness     contenders in processes of their own, repeats by turns, statistics
    worker      what runs in such a process
    checks      every contender's output, looked at line by line
    table       results as text
    goals       what a contender is to reach, and the summary that ends each run
    catalogue   name to workload
    loggers     the limit, and every logger set up in its own way
    records, fields, setups, background, threads, rotation, processes, metrics, questions, timing,
    training, trackers, imports, memory    the workloads by family
    selftest    a workload of contenders that go wrong in every known way

The limit of a workload is the least that the task can cost: for a line in a file one
`orjson.dumps` of the finished dict and one `os.write`. Absolute times hold for one machine in one
hour; the ratio to the limit, measured by turns with it, is what travels.

The summary has a line for each goal: µs and × limit are medians over the processes, `reached` is
the figure that the goal bounds (the median of the ratios within each repeat, or the time in the
goal's unit), `best peer` is the fastest contender that is not ours. A missed goal is a result; the
exit status is 1 only where a contender did not do its task.
"""
