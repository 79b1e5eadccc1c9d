"""One training run: from what the training loop reports to records, findings, responses and logs."""
