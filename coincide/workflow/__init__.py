"""The workflow around the stages: config, dependencies, jobs, plan, status, Slurm, cost estimate."""
