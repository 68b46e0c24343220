"""What several rooms use: config sections, errors, files, tables, activations on disk, rows, threads, devices."""
