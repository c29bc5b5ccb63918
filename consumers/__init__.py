"""What runs: the trainer, the service, the commands. The only package that constructs."""
