"""What the user wants: the cluster file, its models, its errors. No process, no network."""
