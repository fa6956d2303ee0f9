"""The results as one page: `python -m benchmarks.web`. Every number on it stands in a results file."""
