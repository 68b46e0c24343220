"""What the workflow needs around the stages: config, dependencies, jobs, plan, status, estimate."""
