"""Jobs of a Slurm cluster that shares the home: the same worker, started by `srun`, reads and writes the run's folder there.

`commands` asks Slurm, `place` is what an admin says of the cluster, `script` is what a job runs, `record` is what is known of it
through restarts, `follower` takes a job from submission to its end, and `executor` follows all of them from one thread.
"""
