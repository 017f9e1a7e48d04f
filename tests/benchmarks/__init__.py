"""What logging costs, measured against the limit and the peers: `python -m tests.benchmarks`.

    __main__    the command
    harness     contenders in processes of their own, repeats by turns, statistics
    worker      what runs in such a process
    checks      every contender's output, looked at line by line
    table       results as text
    catalogue   name to workload
    records, rotation, metrics, timing, imports, memory    the workloads by family
    selftest    a workload of contenders that go wrong in every known way

The limit of a workload is the least that the task can cost: for a line in a file one
`orjson.dumps` of the finished dict and one `os.write`. Absolute times hold for one machine in one
hour; the ratio to the limit, measured by turns with it, is what travels.
"""
