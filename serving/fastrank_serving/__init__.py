"""fastrank over HTTP: a thin service for SageMaker and anywhere else."""
