"""fastrank behind HTTP: a thin service for SageMaker and for anywhere else."""
