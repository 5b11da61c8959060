"""Sessions that many routers share through Redis or Valkey."""
