"""Speed, measured side by side: one file a family, each behind a correctness gate."""
