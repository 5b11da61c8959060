"""The processes of `capport run`: one, or a first one and its workers."""
