"""What our runtime is compared with: each contender in a process of its own, which times its own calls.

A process holds one contender, so no two share a thread pool, an allocator or a monkey patch, and a contender may need
packages that would change the others (NNCF, OpenVINO): it then runs under another Python. `worker` is the program of
such a process, `crew` the other end of its pipes; the modules between make the contenders, one family each.
"""
