"""Front ends: processes that take requests apart and hand their rows, in shared memory, to the one that runs engines.

    clients -> front end 1 ..N -> engine process
               parse, check       batches across all of them, runs, answers

`supervisor` starts and restarts them. `memory` is what they share, made before the first of them is forked: an arena
of rows for each front end, and arrays of counters. `messages` are what they tell each other over a Unix socket
(`channel`). `gateway` and `known` are a front end's side of it, `links` the engine's. What is no inference call goes
to the engine's own HTTP server through `proxy`.
"""
