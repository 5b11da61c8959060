"""What runs behind every enforcement point: built, started, followed and stopped."""
