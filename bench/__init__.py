"""Whether the jobs are fast and modest enough: ratios, measured side by side in one run."""
