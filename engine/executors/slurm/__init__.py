"""Jobs of a Slurm cluster that shares the home: the same worker, started by `srun`, reads and writes the run's folder there.

`commands` asks Slurm, `place` is an admin's description of the cluster, `script` is what a job runs, `record` is its state
through restarts, `follower` takes a job from submission to its end, and `executor` follows all of them from one thread.
"""
