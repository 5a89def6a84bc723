"""Every SQL statement and every Redis command of the service, and nothing else."""
