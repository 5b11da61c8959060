"""What `scripts/bench` measures: each figure beside its peer's, both taken in the same run."""
