"""Jobs of a Slurm cluster that shares the home: the same worker, started by `srun`, reads and writes the run's folder there.

`commands` asks Slurm, `place` is an admin's description of the cluster and the record of a job, `script` is what a job or a step
runs, and `job` takes it from submission to its end and polls all of them with one query.
"""
