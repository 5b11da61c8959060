"""The policy file: YAML in, a `Policy` out, or errors with line, column and caret."""
