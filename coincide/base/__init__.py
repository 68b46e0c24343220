"""What several rooms use: files, tables, activations on disk, rows, threads, progress, devices, errors."""
