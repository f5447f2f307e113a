"""The benchmark of optimizer steps on this machine: workloads, contenders, the memory's limit, and the tables."""
