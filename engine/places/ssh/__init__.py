"""Machines that a person reaches by SSH: each is a Loratory home of its own, whose queue trains what is sent there.

`machine.py` has the connection and the list of machines, `there.py` runs on the machine, `job.py` follows a run from here.
"""
