"""Jobs on Hugging Face's hardware: the run travels through a private bucket of the person, and its worker does not notice.

On this machine `job` sends the run, submits the job, and downloads what it writes. In the job a companion starts
the same worker as here and uploads what appears in the run's folder. `layout` names the files that both of them know.
"""
