"""What is decided: values in, values out; no clock, no file, no socket."""
