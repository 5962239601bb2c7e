"""Routes: parse bytes, call one function, return bytes."""
